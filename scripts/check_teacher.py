"""python scripts/check_teacher.py is policy-distill check_teacher."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["check_teacher", *sys.argv[1:]]))
