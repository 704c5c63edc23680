"""Install the requirements of ``sdmatte demo`` into the environment that runs this script.

gradio 6.31 requires Pillow < 13, but works with the version in ``constraints.txt``, which pip would
reject. Therefore, gradio is installed without its dependencies, then all of these except Pillow.
Packages pinned by ``constraints.txt`` are not replaced.
"""

import argparse
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
    # pip is expected to warn that gradio and Pillow are incompatible.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    status = subprocess.run([*command, *arguments]).returncode
    if status:
        sys.exit(f"error: pip failed (status {status}), see its message above.")


def main() -> None:
    """Install gradio, playwright and their dependencies."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    names = ("gradio", "playwright")
    pip_install("--no-deps", *CONSTRAINTS, "--requirement", str(ROOT / "requirements-demo.txt"))
    importlib.invalidate_caches()
    needed = [line for name in names for line in requires(name) or () if "extra ==" not in line]
    pip_install(*CONSTRAINTS, *(line for line in needed if not re.match(r"pillow\b", line, re.I)))


if __name__ == "__main__":
    main()
