"""Install the Python part of detectron2 0.6 into the environment that runs this script.

detectron2 is not on the package index, but ``pb1-detectron2`` 0.6 is: a source archive with the
Python files of the official release. It lacks the C++ sources, so its own set-up script cannot
build it. This script has pip fetch that archive, pinned by its hash, and build and install a
pure-Python ``detectron2`` from it. An installed detectron2, such as an official build, is kept.

The dependencies are in ``requirements.txt``. torch and setuptools must be installed before.
"""

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

ARCHIVE_REQUIREMENT = "pb1-detectron2==0.6"
ARCHIVE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
VERSION = "0.6+pure"
"""The local label distinguishes this build from an official, compiled one."""

# The official requirements, without those of model export and `LazyConfig.to_py` (future, pydot,
# black) and without the upper bound of iopath: 0.1.10 works.
PROJECT = f"""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "{VERSION}"
description = "Python part of detectron2 0.6, without the compiled operators"
license = "Apache-2.0"
dependencies = [
    "torch>=1.8", "torchvision", "Pillow>=7.1", "matplotlib", "pycocotools>=2.0.2",
    "termcolor>=1.1", "yacs>=0.1.8", "tabulate", "cloudpickle", "tqdm>4.29.0", "tensorboard",
    "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7", "omegaconf>=2.1", "hydra-core>=1.1",
]
urls.Repository = "https://github.com/facebookresearch/detectron2"

[tool.setuptools.packages.find]
include = ["detectron2*"]
"""


def main(argv: list[str] | None = None) -> None:
    """Install detectron2 unless it is installed.

    Raises:
        SystemExit: A step failed; the message says why.
    """
    parser = argparse.ArgumentParser(
        description="Install the Python part of detectron2 0.6, unless detectron2 is installed."
    )
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="FILE",
        help=f"source archive of {ARCHIVE_REQUIREMENT}, if pip cannot fetch it",
    )
    args = parser.parse_args(argv)
    installed = find_installed()
    if installed is not None:
        print(f"detectron2 is installed in {installed}; kept.")
        return
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        folder = Path(name)
        archive = args.archive or download(folder)
        check_hash(archive)
        wheel = build_wheel(archive, folder)
        # By name, not by path: `pip freeze` then shows a version instead of a temporary path.
        run_pip(
            "install", "--no-index", "--find-links", str(wheel.parent), f"detectron2=={VERSION}"
        )
    print(f"detectron2 {VERSION} installed.")


def find_installed() -> Path | None:
    """Return the folder of an installed detectron2 without importing it; None if there is none."""
    spec = importlib.util.find_spec("detectron2")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def download(folder: Path) -> Path:
    """Fetch the archive with the user's own index settings."""
    requirement = folder / "detectron2.txt"
    requirement.write_text(f"{ARCHIVE_REQUIREMENT} --hash=sha256:{ARCHIVE_SHA256}\n")
    target = folder / "archive"
    print(f"Fetching {ARCHIVE_REQUIREMENT} ...")
    run_pip(
        *("download", "--no-build-isolation", "--no-binary", "pb1-detectron2", "--require-hashes"),
        *("--requirement", str(requirement), "--dest", str(target)),
        hint="Check the network and pip's index settings (`pip config list`). pip must be older "
        "than 26.3, which refuses this archive for a URL in its metadata. You can also pass a copy "
        "of the archive with --archive, or install the official build of detectron2.",
    )
    return next(target.glob("*.tar.gz"))


def check_hash(archive: Path) -> None:
    """Refuse any archive but the pinned one."""
    try:
        actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    except OSError as error:
        sys.exit(f"error: cannot read {archive}: {error.strerror}.")
    if actual != ARCHIVE_SHA256:
        sys.exit(
            f"error: {archive} has the SHA-256 {actual}, not {ARCHIVE_SHA256}: it is not the "
            f"archive of {ARCHIVE_REQUIREMENT} and was not installed."
        )


def build_wheel(archive: Path, folder: Path) -> Path:
    """Build a pure-Python wheel from the archive's ``detectron2`` package."""
    source = folder / "source"
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            is_source = path.parts[:1] == ("detectron2",) and path.suffix == ".py"
            if member.isfile() and (is_source or path == PurePosixPath("LICENSE")):
                target = source / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    (source / "pyproject.toml").write_text(PROJECT)
    run_pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder / "wheel"), str(source))
    return next((folder / "wheel").glob("*.whl"))


def run_pip(command: str, *arguments: str, hint: str = "") -> None:
    """Run a pip command of this environment; show its output only if it fails."""
    result = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", command, "--no-deps"]
        + list(arguments),
        # The archive's set-up script would look for CUDA sources that it lacks.
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "FORCE_CUDA": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        print(result.stdout.strip())
        sys.exit(f"error: `pip {command}` failed, see above. {hint}".strip())


if __name__ == "__main__":
    main()
