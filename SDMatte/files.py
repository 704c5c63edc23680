"""Text files."""

import os
from pathlib import Path

from SDMatte.errors import DataError


def write_text(path: str | Path, text: str) -> None:
    """Writes a file in one piece: a reader sees the old one or the whole new one.

    Args:
        path: Where to. Missing folders are made.
        text: Written in UTF-8.

    Raises:
        DataError: It cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}.") from error
