"""Run the tests with each dependency at the lowest version that pyproject.toml allows, in a fresh virtual environment.

python3.11 scripts/test_floors.py
python3.11 scripts/test_floors.py --instead torch==2.13.0 -k ppo    # another version of one of them; the rest goes to pytest
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Old releases use what newer ones of their own dependencies deprecate; users of these releases do not see it.
PYTEST = ["-n", "2", "-m", "not slow and not gpu", "-W", "ignore::DeprecationWarning"]


def floors(pyproject: Path) -> dict[str, str]:
    """Name -> lowest version of each dependency, those of the extras among them."""
    project = tomllib.loads(pyproject.read_text())["project"]
    requirements = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return {found[1]: found[2] for text in requirements if (found := re.match(r"([\w.-]+)(?:\[.*])?>=([\w.]+)", text))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instead", metavar="NAME==VERSION", action="append", default=[], help="a version in place of the floor")
    options, for_pytest = parser.parse_known_args()
    versions = floors(ROOT / "pyproject.toml") | dict(text.split("==") for text in options.instead)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python, constraints = Path(folder, "bin", "python"), Path(folder, "floors.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        print(constraints.read_text(), flush=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, "torch", "-e", f"{ROOT}[dev,envpool]"], check=True)
        return subprocess.run([python, "-m", "pytest", *PYTEST, *for_pytest], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
