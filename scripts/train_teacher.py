"""python scripts/train_teacher.py is policy-distill train_teacher."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train_teacher", *sys.argv[1:]]))
