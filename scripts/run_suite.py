"""python scripts/run_suite.py is policy-distill run_suite."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["run_suite", *sys.argv[1:]]))
