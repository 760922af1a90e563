"""python scripts/distill_policy.py is policy-distill distill_policy."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill_policy", *sys.argv[1:]]))
