"""File names, and files to be written: in one piece, and never over what a command reads."""

import contextlib
import os
import platform
import re
import stat
import time
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import psutil

from SDMatte.errors import DataError, MissingFileError, OutputError

_LONGEST_NAME = 255  # bytes, on nearly all file systems
_HOST = re.sub(r"\W", "", platform.node().split(".")[0])
_TEMPORARY = re.compile(r"\..+\.(?:(?P<host>\w+)-)?(?P<pid>\d{1,9})\.tmp")
_ABANDONED = 24 * 3600  # seconds


# ----------------------------------------------------------------------- names


def name_key(path: str) -> str:
    """Return what all spellings of a name share: Unicode NFC, and the suffix in lower case.

    Names are compared by it, files are opened by their own bytes: macOS writes ``é`` as two
    characters (NFD), other systems as one (NFC), and cameras write ``.JPG``.
    """
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", path))
    return stem + suffix.lower()


def stem_key(path: str | Path) -> str:
    """Return the `name_key` of a file name without folder and extension."""
    return os.path.splitext(name_key(os.path.basename(path)))[0]


class NameLookup:
    """Finds files by name, however it is spelled (`name_key`); lists each folder once."""

    def __init__(self) -> None:
        """Starts empty."""
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def spellings(self, folder: str | Path) -> dict[str, list[str]]:
        """Map the key of each entry of a folder to its names, of which there may be several.

        Raises:
            DataError: The folder does not exist or cannot be listed.
        """
        folder = Path(folder)
        if folder not in self._listed:
            found: dict[str, list[str]] = {}
            try:
                for name in sorted(os.listdir(folder)):
                    found.setdefault(name_key(name), []).append(name)
            except OSError as error:
                raise list_error(folder, error) from error
            self._listed[folder] = found
        return self._listed[folder]

    def find(self, path: str | Path) -> Path:
        """Return an existing file's or folder's own path; ``path`` itself if there is none.

        Raises:
            DataError: Only other spellings of the name exist, and several of them.
        """
        path = Path(path)
        if os.path.lexists(path) or path.parent == path:
            return path
        folder = self.find(path.parent)
        try:
            names = self.spellings(folder).get(name_key(path.name), [])
        except ValueError:  # no folder, or no name at all: whoever reads the file says so
            return path
        if len(names) > 1:
            raise DataError(
                f"{path} is ambiguous: {folder} holds {len(names)} other spellings of that name, "
                f"{' and '.join(map(ascii, names))}. Rename one of them."
            )
        return folder / names[0] if names else path


def list_error(folder: str | Path, error: OSError) -> DataError:
    """Return the error that says why a folder cannot be listed."""
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"The folder {folder} does not exist.")
    return DataError(f"Cannot list the folder {folder}: {error.strerror}.")


# --------------------------------------------------------------------- writing


@contextlib.contextmanager
def replace_file(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path, whose file takes the place of ``path`` once it is complete.

    A reader sees the old file or the whole new one. Missing folders are created. What a killed
    process has left in the folder is deleted.

    Args:
        path: The file.
        durable: Whether to wait until it is on the disk.

    Raises:
        OutputError: It cannot be written.
    """
    path = Path(path)
    end = f".{_HOST}-{os.getpid()}.tmp"
    name = path.name
    while len(os.fsencode(name)) > _LONGEST_NAME - 1 - len(end):
        name = name[1:]
    temporary = path.with_name(f".{name}{end}")
    try:
        with contextlib.suppress(FileExistsError):  # no folder: who opens the file says so better
            path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(os.path.abspath(path.parent))
        try:
            yield temporary
            if durable:
                _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            with contextlib.suppress(OSError):  # not every file system can sync folders
                _sync(path.parent)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one piece; see `replace_file`.

    Args:
        path: The file.
        text: Written in UTF-8; of file names that are not, the bytes that they are.

    Raises:
        OutputError: It cannot be written.
    """
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


@cache
def clear_leftovers(folder: str) -> None:
    """Delete the temporary files of `replace_file` whose processes are gone; once a folder.

    Those of other machines, which may share the folder, are deleted when they are a day old.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            found = _TEMPORARY.fullmatch(name)
            path = os.path.join(folder, name)
            if found and os.path.isfile(path) and _is_abandoned(path, **found.groupdict()):
                os.unlink(path)


def _is_abandoned(path: str, host: str | None, pid: str) -> bool:
    if host in (None, _HOST):
        return not psutil.pid_exists(int(pid))
    return time.time() - os.stat(path).st_mtime > _ABANDONED


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -------------------------------------------------------------- what may be written


def check_not_read(
    outputs: Iterable[str | Path],
    inputs: Iterable[str | Path | None],
    emptied: Iterable[str | Path] = (),
) -> None:
    """Ensure that a command writes to nothing that it reads, by whatever name or link.

    To be called before anything is loaded or written.

    Args:
        outputs: Files and folders that will be written to. A folder is not the files in it.
        inputs: Files and folders that are read; None entries are skipped.
        emptied: Folders whose contents will be deleted; all that is in them is an output.

    Raises:
        OutputError: An output is one of the inputs.
    """
    outputs = [
        *outputs,
        *emptied,
        *(path for folder in emptied for path in Path(folder).rglob("*")),
    ]
    written = {key: path for path in outputs if (key := _identity(path)) is not None}
    for path in inputs if written else ():
        output = written.get(_identity(path)) if path is not None else None
        if output is not None:
            same = str(output) == str(path)
            raise OutputError(
                f"{output} {'' if same else f'is {path}, which '}is read by this command and must "
                "not be overwritten: choose another output."
            )


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What is the same for all names of a file or folder; None of what is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    ordinary = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return (status.st_dev, status.st_ino) if ordinary else None


def check_writable(path: str | Path) -> None:
    """Ensure that nothing known keeps a file from being written; nothing is created.

    Raises:
        OutputError: Something does.
    """
    obstacle = find_obstacle(Path(path))
    if obstacle is not None:
        raise OutputError(f"Cannot write {path}: {obstacle}.")


def find_obstacle(path: Path) -> str | None:
    """Return why a file cannot be written, as far as that is known before it is created."""
    if os.path.isdir(path):
        return "it is a folder"
    folder = next((f for f in path.absolute().parents if os.path.exists(f)), path)
    if not os.path.isdir(folder):
        return f"{folder} is no folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written to"


def read_error(path: str | Path, error: OSError, what: str = "") -> DataError:
    """Return the error of a file that cannot be read, a `MissingFileError` where it is missing.

    Args:
        path: The file.
        error: What the system said.
        what: What the file is, such as ``"the prompt file "``.
    """
    kind = MissingFileError if isinstance(error, FileNotFoundError) else DataError
    return kind(f"Cannot read {what}{path}: {error.strerror or error}.")
