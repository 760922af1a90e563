"""python scripts/run_ablation.py is policy-distill run_ablation."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["run_ablation", *sys.argv[1:]]))
