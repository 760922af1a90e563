"""python scripts/render_policy.py is policy-distill render_policy."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["render_policy", *sys.argv[1:]]))
