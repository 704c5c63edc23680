"""Files to be written: text, and whether there is anything in the way."""

import os
from pathlib import Path

from SDMatte.errors import DataError, MissingFileError


def write_text(path: str | Path, text: str) -> None:
    """Writes a file in one piece: a reader sees the old one or the whole new one.

    Args:
        path: Where to. Missing folders are made.
        text: Written in UTF-8; of file names that are not, the bytes that they are.

    Raises:
        DataError: It cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}.") from error


def check_writable(path: str | Path) -> None:
    """Sees that nothing known keeps a file from being written; nothing is made.

    Raises:
        DataError: Something does.
    """
    obstacle = find_obstacle(Path(path))
    if obstacle is not None:
        raise DataError(f"Cannot write {path}: {obstacle}.")


def find_obstacle(path: Path) -> str | None:
    """Says why a file cannot be written, as far as that is known before it is made."""
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
