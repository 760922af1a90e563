"""python scripts/evaluate_policy.py is policy-distill evaluate_policy."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate_policy", *sys.argv[1:]]))
