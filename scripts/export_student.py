"""python scripts/export_student.py is policy-distill export_student."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["export_student", *sys.argv[1:]]))
