"""python scripts/benchmark.py is policy-distill benchmark."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
