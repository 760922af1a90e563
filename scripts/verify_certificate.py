"""python scripts/verify_certificate.py is policy-distill verify_certificate."""

import sys

from policy_distill.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["verify_certificate", *sys.argv[1:]]))
