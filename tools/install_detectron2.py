"""Installs the Python part of detectron2 0.6 into the environment that runs this script.

detectron2 has no release on the package index. What is there, ``pb1-detectron2`` 0.6, is a source
archive with the Python files of the official release 0.6 but without its C++ sources, so that its
own set-up script cannot build it. This project needs only Python files of detectron2. So this
script has pip fetch that archive, pinned by its hash, makes an ordinary pure-Python wheel
``detectron2`` of it and has pip install that: ``pip show`` and ``pip uninstall detectron2`` work.

A detectron2 that is there already, such as an official build, is left alone. Dependencies are not
installed (they are part of ``requirements.txt``); torch and setuptools have to be there already,
since pip asks the archive's set-up script for its name and version.
"""

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

logger = logging.getLogger("install_detectron2")

ARCHIVE_REQUIREMENT = "pb1-detectron2==0.6"
ARCHIVE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
VERSION = "0.6+pure"
"""detectron2's release; the local label tells this wheel from an official, compiled one."""

# install_requires of the official set-up script, less what only model export and `LazyConfig.to_py`
# need (future, pydot, black) and less the upper bound on iopath: 0.1.10 works.
REQUIRES = (
    "torch>=1.8",
    "torchvision",
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)

OFFICIAL_BUILD = (
    "You can also install the official build from its repository yourself (see README.md, "
    "Installation); this script then leaves it alone."
)


class InstallError(Exception):
    """A step failed; the message says which and what to do about it."""


def main(argv: list[str] | None = None) -> int:
    """Runs the installer.

    Args:
        argv: Arguments, by default those of the command line.

    Returns:
        Exit status: 0 when detectron2 is installed, 1 otherwise.
    """
    parser = argparse.ArgumentParser(
        description="Install the Python part of detectron2 0.6, unless a detectron2 is there."
    )
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="FILE",
        help=f"source archive of {ARCHIVE_REQUIREMENT}, where pip cannot fetch it",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        found = find_installed()
        if found is not None:
            logger.info("detectron2 %s is installed in %s: left as it is.", *found)
            return 0
        with tempfile.TemporaryDirectory(prefix="detectron2-") as folder:
            archive = args.archive or download(Path(folder))
            check_hash(archive, ARCHIVE_SHA256)
            wheel = build_wheel(archive, Path(folder) / "wheel")
            install(wheel)
        logger.info("detectron2 %s (pure Python) installed.", VERSION)
    except InstallError as error:
        logger.error("%s", error)
        return 1
    return 0


def find_installed() -> tuple[str, Path] | None:
    """Looks for an importable detectron2, without importing it.

    Returns:
        Version and folder, or None when there is none or only the rest of a broken installation.
    """
    # Not from the folder of this script, which Python puts first.
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        # pip writes the metadata last: files of ours without them come from an interrupted run.
        if folder.parent == Path(sysconfig.get_path("purelib")):
            return None
        version = "(a source folder)"
    return version, folder


def download(folder: Path) -> Path:
    """Has pip fetch the archive, with the user's own index settings, and check its hash.

    Args:
        folder: Where the archive goes.

    Returns:
        The archive's path.

    Raises:
        InstallError: pip could not fetch it.
    """
    requirement = folder / "detectron2.txt"
    requirement.write_text(f"{ARCHIVE_REQUIREMENT} --hash=sha256:{ARCHIVE_SHA256}\n")
    target = folder / "archive"
    name = ARCHIVE_REQUIREMENT.partition("==")[0]
    command = ["download", "--no-deps", "--no-build-isolation", "--no-binary", name]
    command += ["--require-hashes", "--requirement", str(requirement), "--dest", str(target)]
    logger.info("Fetching %s ...", ARCHIVE_REQUIREMENT)
    # The archive's set-up script looks for CUDA sources, which it lacks, where it sees a GPU.
    run_pip(
        command,
        f"pip could not fetch {ARCHIVE_REQUIREMENT}; its own message stands above. Check the "
        "network, pip's index settings (`pip config list`) and that pip is older than 26.3, which "
        "refuses this archive for a URL in its metadata; then run this again, or give a copy of "
        f"the archive with --archive. {OFFICIAL_BUILD}",
        env={"CUDA_VISIBLE_DEVICES": "", "FORCE_CUDA": "0"},
    )
    archives = sorted(target.glob("*.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"pip fetched no source archive of {ARCHIVE_REQUIREMENT}.")
    return archives[0]


def check_hash(archive: Path, sha256: str) -> None:
    """Refuses an archive that is not, byte for byte, the one this script was written for.

    Args:
        archive: The file.
        sha256: Its expected hash, in hexadecimal.

    Raises:
        InstallError: The file cannot be read or has another hash.
    """
    try:
        actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"cannot read {archive}: {error.strerror}.") from error
    if actual != sha256:
        raise InstallError(
            f"{archive} has the SHA-256 {actual} and not {sha256}: it is not the archive of "
            f"{ARCHIVE_REQUIREMENT} and was not installed."
        )


def build_wheel(archive: Path, folder: Path) -> Path:
    """Makes a pure-Python wheel of the archive's ``detectron2`` package.

    Args:
        archive: Source archive: one folder that holds ``detectron2/`` and perhaps ``LICENSE``.
        folder: Where the wheel goes, made if missing.

    Returns:
        The wheel's path. Equal archives give equal wheels.

    Raises:
        InstallError: The archive is damaged, holds an unsafe member or no detectron2.
    """
    files, licence = read_package(archive)
    info = f"detectron2-{VERSION}.dist-info"
    files[f"{info}/METADATA"] = _metadata().encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: install_detectron2\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/top_level.txt"] = b"detectron2\n"
    if licence is not None:
        files[f"{info}/LICENSE"] = licence
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # dated 1980: no clock in the wheel
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            out.writestr(entry, data)
    return wheel


def read_package(archive: Path) -> tuple[dict[str, bytes], bytes | None]:
    """Reads the Python files of ``detectron2/`` from the archive; nothing is unpacked to disk.

    Args:
        archive: Source archive.

    Returns:
        Contents by path (``detectron2/...``), sorted, and the licence's text if there is one.

    Raises:
        InstallError: The archive is damaged, holds a member with an absolute path or ``..``, a link
            or device in the package, or no detectron2.
    """
    files: dict[str, bytes] = {}
    licence = None
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                    raise InstallError(f"{archive} holds the unsafe path {member.name!r}.")
                inner = PurePosixPath(*path.parts[1:])
                is_source = inner.parts[:1] == ("detectron2",) and inner.suffix == ".py"
                if not is_source and inner != PurePosixPath("LICENSE"):
                    continue
                if not member.isfile():
                    raise InstallError(f"{archive}: {member.name!r} is no ordinary file.")
                data = tar.extractfile(member).read()
                if is_source:
                    files[str(inner)] = data
                else:
                    licence = data
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstallError(f"{archive} is no readable source archive: {error}.") from error
    if "detectron2/__init__.py" not in files:
        raise InstallError(f"{archive} holds no detectron2 package.")
    return dict(sorted(files.items())), licence


def install(wheel: Path) -> None:
    """Has pip install the wheel.

    Args:
        wheel: The wheel's path.

    Raises:
        InstallError: pip failed.
    """
    # By name from its folder, not by path: `pip freeze` then shows a version and no temporary path.
    command = ["install", "--no-deps", "--no-index", "--find-links", str(wheel.parent)]
    run_pip(
        [*command, f"detectron2=={VERSION}"],
        f"pip could not install {wheel.name}; its own message stands above. Is the environment "
        f"{sys.prefix} writable?",
    )


def run_pip(arguments: list[str], failure: str, env: Mapping[str, str] | None = None) -> None:
    """Runs the pip of this environment, with its messages on failure only.

    Args:
        arguments: What follows ``pip``.
        failure: Message of the error when pip fails.
        env: Variables set on top of the environment's.

    Raises:
        InstallError: pip exited with another status than 0.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        logger.error("%s", result.stdout.strip())
        raise InstallError(failure)


def _metadata() -> str:
    lines = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: Python part of detectron2 0.6, without the compiled operators",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "Requires-Python: >=3.6",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
    ]
    return "\n".join(lines) + "\n"


def _record(files: Mapping[str, bytes], record: str) -> bytes:
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    return "\n".join([*lines, f"{record},,"]).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
