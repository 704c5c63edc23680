"""Paths, file names, atomic writing, and protection of a command's inputs."""

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

from SDMatte.errors import ConfigError, DataError, MissingFileError, OutputError

_LONGEST_NAME = 255  # bytes, on nearly all file systems
_HOST = re.sub(r"\W", "", platform.node().split(".")[0])
_TEMPORARY = re.compile(r"\..+\.(?:(?P<host>\w+)-)?(?P<pid>\d{1,9})\.tmp")
_ABANDONED = 24 * 3600  # seconds
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


# ------------------------------------------------------------- paths and names


def expand_path(path: str | os.PathLike[str]) -> str:
    """Expand ``~``, ``~user``, ``$NAME`` and ``${NAME}``, as a shell does outside of quotes.

    A ``$`` in the name of an existing file or folder is kept.

    Raises:
        ConfigError: A variable is not set.
    """
    text = os.fspath(path)
    if os.path.lexists(text) and not text.startswith("~/"):
        return text

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        component_end = text.find("/", match.end())
        if name in os.environ:
            return os.environ[name]
        if os.path.lexists(text if component_end < 0 else text[:component_end]):
            return match[0]
        raise ConfigError(f"The environment variable {name} in the path {text!r} is not set.")

    return os.path.expanduser(_VARIABLE.sub(value, text))


def name_key(path: str) -> str:
    """Normalize a name for comparison: Unicode NFC, suffix in lower case.

    macOS writes ``é`` as two characters (NFD), other systems as one (NFC), and cameras write
    ``.JPG``. Files are still opened by their original names.
    """
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", path))
    return stem + suffix.lower()


def stem_key(path: str | Path) -> str:
    """Return the `name_key` of a file name without folder and extension."""
    return os.path.splitext(name_key(os.path.basename(path)))[0]


class NameLookup:
    """Find files by name in any spelling (`name_key`); each folder is listed once."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def spellings(self, folder: str | Path) -> dict[str, list[str]]:
        """Map the key of each entry of a folder to its spellings.

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
        """Return the path as spelled on disk; ``path`` itself if nothing matches.

        Raises:
            DataError: Several other spellings of the name exist.
        """
        path = Path(path)
        if os.path.lexists(path) or path.parent == path:
            return path
        folder = self.find(path.parent)
        try:
            names = self.spellings(folder).get(name_key(path.name), [])
        except ValueError:  # not a folder or not a valid name; reading the file reports it
            return path
        if len(names) > 1:
            raise DataError(
                f"{path} is ambiguous: {folder} holds {len(names)} other spellings of that name, "
                f"{' and '.join(map(ascii, names))}. Rename one of them."
            )
        return folder / names[0] if names else path


def list_error(folder: str | Path, error: OSError) -> DataError:
    """Return the error for a folder that cannot be listed."""
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"Folder {folder} not found.")
    return DataError(f"Cannot list the folder {folder}: {error.strerror}.")


# --------------------------------------------------------------------- writing


@contextlib.contextmanager
def replace_file(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path that atomically replaces ``path`` at the end.

    Missing folders are created, and temporary files of killed processes are deleted. If
    ``durable``, the file is synced to disk.

    Raises:
        OutputError: The file cannot be written.
    """
    path = Path(path)
    end = f".{_HOST}-{os.getpid()}.tmp"
    name = path.name
    while len(os.fsencode(name)) > _LONGEST_NAME - 1 - len(end):
        name = name[1:]
    temporary = path.with_name(f".{name}{end}")
    try:
        with contextlib.suppress(FileExistsError):  # not a folder; opening the file reports it
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
    """Write a UTF-8 text file atomically; undecodable file names keep their bytes."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


@cache
def clear_leftovers(folder: str) -> None:
    """Delete temporary files of `replace_file` whose processes have ended; once per folder.

    Files of other machines that share the folder are deleted after a day.
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


# -------------------------------------------------------------- inputs and outputs


def check_not_read(
    outputs: Iterable[str | Path],
    inputs: Iterable[str | Path | None],
    emptied: Iterable[str | Path] = (),
) -> None:
    """Ensure that no output is an input, under any name or link.

    Call this before anything is loaded or written.

    Args:
        outputs: Files and folders to write; a folder does not include its files.
        inputs: Files and folders to read; None entries are skipped.
        emptied: Folders whose contents are deleted; everything in them is an output.

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
        key = None if path is None else _identity(path)
        if key in written:
            output = written[key]
            same = str(output) == str(path)
            raise OutputError(
                f"{output} {'' if same else f'is {path}, which '}is read by this command and must "
                "not be overwritten: choose another output."
            )


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Return an id shared by all names of a file or folder; None if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    ordinary = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return (status.st_dev, status.st_ino) if ordinary else None


def check_writable(path: str | Path) -> None:
    """Raise `OutputError` if a file is not writable; nothing is created."""
    obstacle = find_obstacle(Path(path))
    if obstacle is not None:
        raise OutputError(f"Cannot write {path}: {obstacle}.")


def find_obstacle(path: Path) -> str | None:
    """Return why a file is not writable; None if no obstacle is known."""
    if os.path.isdir(path):
        return "it is a folder"
    folder = next((f for f in path.absolute().parents if os.path.exists(f)), path)
    if not os.path.isdir(folder):
        return f"{folder} is not a folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} is not writable"


def read_error(path: str | Path, error: OSError, what: str = "") -> DataError:
    """Return the error for an unreadable file; a `MissingFileError` if it does not exist.

    ``what`` names the file, such as ``"the prompt file "``.
    """
    kind = MissingFileError if isinstance(error, FileNotFoundError) else DataError
    return kind(f"Cannot read {what}{path}: {error.strerror or error}.")
