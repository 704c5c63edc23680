"""Install the requirements of ``sdmatte demo`` into the environment that runs this script.

gradio 6.31 declares Pillow < 13 but works with that of ``constraints.txt``, which pip would refuse.
So gradio is installed without its dependencies, and then these except for Pillow. Nothing that
``constraints.txt`` pins is replaced.
"""

import importlib
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ["--constraint", str(ROOT / "constraints.txt")]


def pip_install(*arguments: str) -> None:
    """Run pip; exit with its status if it fails."""
    # A warning that gradio and Pillow do not fit is expected; progress is for terminals.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    status = subprocess.run([*command, *arguments]).returncode
    if status:
        sys.exit(f"error: pip failed (status {status}), its message stands above.")


def main() -> None:
    """Install gradio, playwright and what they need."""
    names = ("gradio", "playwright")
    pip_install("--no-deps", *CONSTRAINTS, "--requirement", str(ROOT / "requirements-demo.txt"))
    importlib.invalidate_caches()
    needed = [line for name in names for line in requires(name) or () if "extra ==" not in line]
    pip_install(*CONSTRAINTS, *(line for line in needed if not re.match(r"pillow\b", line, re.I)))


if __name__ == "__main__":
    main()
