"""python scripts/compare_policies.py is policy-distill compare_policies."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare_policies", *sys.argv[1:]]))
