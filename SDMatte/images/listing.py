"""List the image files of folders, and pair them by name.

All functions raise a `SDMatte.errors.DataError` if a folder does not exist or cannot be listed.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from SDMatte.errors import DataError
from SDMatte.images.formats import IMAGE_EXTENSIONS
from SDMatte.runtime.files import NameLookup, list_error, stem_key

logger = logging.getLogger(__name__)

_SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # Windows writes them into folders
_NAMES_SHOWN = 5


def list_names(directory: str | Path) -> list[str]:
    """List the file names of a folder's images, sorted; hidden files are skipped."""
    _, _, files = next(os.walk(directory, onerror=_raise_list_error))
    return sorted(name for name in files if _is_visible(name) and _is_image(name))


@dataclass(frozen=True)
class FolderScan:
    """The contents of a folder, as sorted paths relative to it, with ``/`` as separator.

    Attributes:
        folder: The folder.
        images: The images; those of sub-folders only if the scan is recursive.
        others: Files that are not images, excluding hidden files and system files.
        sub_folders: Number of images in each sub-folder, if the scan is not recursive.
    """

    folder: Path
    images: tuple[str, ...]
    others: tuple[str, ...]
    sub_folders: dict[str, int]

    @property
    def num_left_out(self) -> int:
        """Number of files that are not among the images."""
        return len(self.others) + sum(self.sub_folders.values())

    def log_left_out(self, hint: str = "") -> None:
        """Log the files left out; ``hint`` tells how to include those of sub-folders."""
        if self.others:
            count = _count(len(self.others), "file")
            logger.warning(
                "%s: %s left out, not images: %s.", self.folder, count, shorten(self.others)
            )
        if self.sub_folders:
            count = _count(sum(self.sub_folders.values()), "image")
            names = [f"{name} ({number})" for name, number in self.sub_folders.items()]
            where = f"{_count(len(names), 'sub-folder')} left out: {shorten(names)}. {hint}"
            logger.warning("%s: %s in %s", self.folder, count, where.rstrip())


def scan_folder(
    directory: str | Path, recursive: bool = False, skip: Iterable[str | Path] = ()
) -> FolderScan:
    """List the files of a folder and its sub-folders, visiting each folder once despite links.

    Args:
        directory: The folder.
        recursive: Include the images of sub-folders; otherwise they are only counted.
        skip: Sub-folders to ignore.
    """

    def on_error(error: OSError) -> None:
        if recursive or Path(error.filename) == Path(directory):
            _raise_list_error(error)

    images: list[str] = []
    others: list[str] = []
    inside: Counter[str] = Counter()
    seen = {os.path.realpath(path) for path in skip} - {os.path.realpath(directory)}
    # Links are followed last, so that a folder inside is listed under its own name.
    pending = [str(directory)]
    for start in pending:
        for folder, folders, files in os.walk(start, onerror=on_error):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(filter(_is_visible, folders))
            paths = [os.path.join(folder, name) for name in folders]
            pending += filter(os.path.islink, paths)
            place = os.path.relpath(folder, directory)
            prefix = "" if place == "." else f"{place}/"
            for name in filter(_is_visible, files):
                if prefix and not recursive:
                    inside[prefix.partition("/")[0]] += _is_image(name)
                else:
                    (images if _is_image(name) else others).append(prefix + name)
    sub_folders = {name: number for name, number in sorted(inside.items()) if number}
    return FolderScan(Path(directory), tuple(sorted(images)), tuple(sorted(others)), sub_folders)


def _raise_list_error(error: OSError) -> None:
    raise list_error(error.filename, error) from error


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _SYSTEM_FILES


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(names: Iterable[str]) -> str:
    """Join the first names with commas and add how many more there are."""
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def names_by_stem(directory: str | Path, preferred: str = "") -> dict[str, str]:
    """Map the `stem_key` of each image of a folder to its file name.

    If several files share a stem, the one with the ``preferred`` extension wins, then the order
    of `IMAGE_EXTENSIONS`; the others are logged.

    Raises:
        DataError: A name has two Unicode spellings.
    """
    order = (preferred, *IMAGE_EXTENSIONS)
    found: dict[str, str] = {}
    shadowed = []
    names = list_names(directory)
    for name in sorted(names, key=lambda name: order.index(os.path.splitext(name)[1].lower())):
        other = found.setdefault(stem_key(name), name)
        if os.path.splitext(other)[0] != os.path.splitext(name)[0]:
            raise DataError(
                f"{directory} has the same name in two Unicode spellings, {ascii(other)} and "
                f"{ascii(name)}: rename one of them."
            )
        if other != name:
            shadowed.append(f"{name} (beside {other})")
    if shadowed:
        count = _count(len(shadowed), "image")
        logger.warning(
            "%s: %s left out, same name as another: %s.", directory, count, shorten(shadowed)
        )
    return found


def find_partner(path: str | Path, directory: str | Path, lookup: NameLookup | None = None) -> Path:
    """Find the image of the same name in another folder, whatever its extension and spelling.

    Raises:
        DataError: No such image, or several, were found.
    """
    path, directory = Path(path), Path(directory)
    names = (lookup or NameLookup()).spellings(directory)
    candidates = [
        name for suffix in IMAGE_EXTENSIONS for name in names.get(stem_key(path) + suffix, ())
    ]
    found = [name for name in candidates if (directory / name).is_file()]
    found = [name for name in found if os.path.splitext(name)[0] == path.stem] or found
    if len(found) > 1:
        # Escaped, since two spellings of a name can look the same.
        spelled = [name if name.isascii() else ascii(name) for name in found]
        raise DataError(
            f"{path.name} has several partners in {directory}: {', '.join(spelled)}. Keep one."
        )
    if not found:
        raise DataError(
            f"{path.name} has no partner: {directory} has no {path.stem} with any of the "
            f"extensions {', '.join(IMAGE_EXTENSIONS)}."
        )
    return directory / found[0]
