"""For developers: read thousands of damaged files of every kind; see docs/security.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fuzz.run import main

if __name__ == "__main__":
    sys.exit(main())
