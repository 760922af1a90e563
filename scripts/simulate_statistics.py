"""python scripts/simulate_statistics.py is policy-distill simulate_statistics."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["simulate_statistics", *sys.argv[1:]]))
