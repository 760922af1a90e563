"""For developers: kill runs at random moments and resume them until they are done; see docs/reliability.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.kills.run import main

if __name__ == "__main__":
    sys.exit(main())
