"""From the folders of a set to the list of its samples: alphas first, then what belongs to them.

What a set looks like is an `Entry` (`SDMatte.data.catalog` has those of the paper).
File names are read, no picture is. An entry of the operating system that cannot be looked at
counts as one that is not there, or ends in a `SDMatte.errors.DataError`.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from SDMatte.data.transparency import read_transparent_list
from SDMatte.errors import DataError, MissingFileError
from SDMatte.images.io import IMAGE_EXTENSIONS, list_names, names_by_stem, scan_folder
from SDMatte.runtime.files import NameLookup, name_key, stem_key

logger = logging.getLogger(__name__)

BACKGROUNDS = "BG-20K"


@dataclass(frozen=True)
class Sample:
    """What one training or test sample is made of. Paths are relative to the data root or absolute.

    Attributes:
        dataset: Name of the set, as in the catalogue.
        image: The picture, or for a composite the foreground.
        alpha: The true alpha.
        trimap: A given trimap; "" where it is made from the alpha.
        background: The background of a composite; "" for a natural picture.
        is_trans: 1 transparent, 0 opaque, None: decided from the alpha when it is read.
        caption: Text for the text encoder, "" for none.
    """

    dataset: str
    image: str
    alpha: str
    trimap: str = ""
    background: str = ""
    is_trans: int | None = None
    caption: str = ""


class Row(NamedTuple):
    """A picture with its alpha, as a set lists them; paths relative to the data root."""

    image: str
    alpha: str
    trimap: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Entry:
    """Where a data set keeps its files, and how samples are made of them.

    Attributes:
        folder: The folder, or folders, of the set under the data root.
        alpha: Sub-folder of the alphas; every picture in it becomes one or more samples.
        image: Sub-folder of the natural pictures, "" if there are none.
        fg: Sub-folder of the foregrounds for composites, "" if there are none.
        trimap: Sub-folder of the trimaps, "" if they are made from the alphas.
        composites: Composites made of each foreground.
        background: Folder of the backgrounds under the data root.
        is_trans: 1: all transparent; 0: opaque but for those on the set's list; None: by the
            list, and where there is no list from the alpha.
        image_stem: Gives the stem of the image that belongs to the stem of an alpha.
        files: Lists the set in place of the walk over ``alpha``, where a file describes it.
        count: So many alphas are drawn, once and for all; None takes them all.
        list_file: A text file with one alpha path a line, in place of ``count``.
        remap: (old, new): replaces a prefix of the lines of ``list_file``.
        expected: Alphas that the set was published with; None: not known.
        holdout: The pairs that are for test and not for training: a fraction or a number of them;
            None: the set is not divided.
    """

    folder: str | tuple[str, ...]
    alpha: str = ""
    image: str = ""
    fg: str = ""
    trimap: str = ""
    composites: int = 0
    background: str = BACKGROUNDS
    is_trans: int | None = None
    image_stem: Callable[[str], str] | None = None
    files: Callable[[Path, "Entry"], list[Row]] | None = None
    count: int | None = None
    list_file: str = ""
    remap: tuple[str, str] = ("", "")
    expected: int | None = None
    holdout: float | int | None = None


def samples_of_set(
    name: str, entry: Entry, root: Path, training: bool, check_files: bool = True
) -> Iterator[Sample]:
    """Lists one set, as `list_samples` does: its natural pictures, then its composites.

    ``check_files`` False leaves it to the caller to see which partners are missing.

    Raises:
        DataError: A folder or a list cannot be read; or partners are missing, in test any, in
            training all of them.
    """
    if entry.folder and not os.path.isdir(root):
        raise MissingFileError(
            f"{name}: the data root {root} does not exist; set root in the config, or the "
            f"environment variable SDMATTE_DATA_ROOT."
        )
    listed = None if entry.is_trans == 1 else read_transparent_list(name, root)

    def opacity(alpha: str) -> int | None:
        return entry.is_trans if listed is None else int(stem_key(alpha) in listed)

    if entry.image or entry.files:
        rows = entry.files(root, entry) if entry.files else _rows(root, entry, entry.image, ".jpg")
        rows = _as_spelled(rows, root)
        if entry.holdout is not None:
            rows = _divide(name, rows, entry.holdout, training)
        if check_files:
            _check_files(name, rows, root, training)
        for row in rows:
            yield Sample(
                name, row.image, row.alpha, row.trimap, "", opacity(row.alpha), row.caption
            )
    if entry.fg and entry.composites > 0:
        rows = _as_spelled(_rows(root, entry, entry.fg, ".png"), root)
        if check_files:
            _check_files(name, rows, root, training)
        backgrounds = list_backgrounds(root, entry.background)
        if not backgrounds:
            raise MissingFileError(
                f"Composites need backgrounds, but there is no image in {root / entry.background}; "
                f"another folder is named with {{..., background: DIR}}."
            )
        n = entry.composites
        for f, row in enumerate(rows):
            for i in range(n):
                background = backgrounds[(f * n + i) % len(backgrounds)]
                yield Sample(name, row.image, row.alpha, "", background, opacity(row.alpha))


def _rows(root: Path, entry: Entry, images: str, preferred: str) -> list[Row]:
    """Pairs each alpha with its image and trimap; a missing one gets its likely name."""
    rows = []
    for folder in (entry.folder,) if isinstance(entry.folder, str) else entry.folder:
        image_dir, trimap_dir = join(folder, images), join(folder, entry.trimap)
        alpha_dir = join(folder, entry.alpha)
        used = [image_dir, *([] if entry.list_file else [alpha_dir])]
        used += [trimap_dir] if entry.trimap else []
        for directory in dict.fromkeys(used):
            scan_folder(root / directory, skip=[root / other for other in used]).log_left_out()
        by_stem = names_by_stem(root / image_dir, preferred)
        trimaps = names_by_stem(root / trimap_dir, ".png") if entry.trimap else {}
        alphas = _alphas(root, folder, entry)
        for alpha in alphas:
            stem = stem_key(alpha)
            trimap = join(trimap_dir, trimaps.get(stem, f"{stem}.png")) if entry.trimap else ""
            stem = entry.image_stem(stem) if entry.image_stem else stem
            image = join(image_dir, by_stem.get(stem, f"{stem}{preferred}"))
            rows.append(Row(image, alpha, trimap))
        spare = sorted(by_stem.keys() - {stem_key(alpha) for alpha in alphas})
        if spare and not (entry.image_stem or entry.list_file or entry.count is not None):
            name = join(image_dir, by_stem[spare[0]])
            logger.warning("%d pictures have no alpha and are left out: %s ...", len(spare), name)
    return rows


def _divide(name: str, rows: list[Row], holdout: float | int, training: bool) -> list[Row]:
    """Take the part of a set that is for training, or the one that is held out for test.

    Where a pair belongs follows from the hash of its name, however it is spelled, so that
    it is the same on every machine. Of a fraction, files that are added later leave the
    others where they are. Of a number, an added file may take the place of another.

    Raises:
        DataError: One of the parts would be empty.
    """

    def place(row: Row) -> float:  # in [0, 1)
        digest = hashlib.sha256(stem_key(row.alpha).encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    if isinstance(holdout, int):
        held = set(sorted(rows, key=lambda row: (place(row), row.alpha))[:holdout])
    else:
        held = {row for row in rows if place(row) < holdout}
    if rows and not held:
        raise DataError(
            f"{name}: holdout: {holdout} of {len(rows)} images holds none out; take a larger "
            f"fraction, or a number of images, such as holdout: {max(1, len(rows) // 10)}."
        )
    if rows and len(held) == len(rows):
        raise DataError(
            f"{name}: holdout: {holdout} of {len(rows)} images holds all out, so that none is "
            f"left to train on."
        )
    return [row for row in rows if (row in held) != training]


def _alphas(root: Path, folder: str, entry: Entry) -> list[str]:
    """Lists the alphas of a folder, drawn or read from a list file where the entry says so."""
    directory = join(folder, entry.alpha)
    if entry.list_file:
        path = Path(entry.list_file)
        path = path if os.path.exists(path) else root / path
        old, new = entry.remap
        lines = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
        lines = [new + line[len(old) :] if old and line.startswith(old) else line for line in lines]
        return [line if "/" in line else join(directory, line) for line in lines]
    names = list_names(root / directory)
    if entry.count is not None and entry.count < len(names):
        drawn = np.random.default_rng(0).choice(len(names), entry.count, replace=False)
        names = [names[i] for i in sorted(drawn)]
    return [join(directory, name) for name in names]


def list_backgrounds(root: Path, background: str) -> list[str]:
    """List the images of a folder of backgrounds, in any sub-folders, sorted by their path."""
    top = root / background
    if not os.path.isdir(top):
        return []
    scan = scan_folder(top, recursive=True)
    scan.log_left_out()
    found = [join(background, name) for name in scan.images]
    return sorted(found)


def _as_spelled(rows: Sequence[Row], root: Path) -> list[Row]:
    """Name files as they are on disk, where a list or a label spells them otherwise."""
    lookup = NameLookup()

    def spelled(path: str) -> str:
        folder, _, name = path.rpartition("/")
        try:
            names = lookup.spellings(root / folder).get(name_key(name), [name])
        except ValueError:  # no folder, or no name at all: it counts as missing
            return path
        if name in names or not path:
            return path
        if len(names) > 1:
            raise DataError(f"{root / path} is ambiguous: {' and '.join(map(ascii, names))} exist.")
        return f"{folder}/{names[0]}" if folder else names[0]

    return [row._replace(**{k: spelled(getattr(row, k)) for k in Row._fields[:3]}) for row in rows]


def _check_files(name: str, rows: Sequence[Row], root: Path, training: bool) -> None:
    """Complains of pictures and trimaps that are not there: by an error, or in the log."""
    there: dict[str, set[str]] = {}

    def is_there(path: str) -> bool:
        folder, _, file_name = path.rpartition("/")
        if folder not in there:
            # Not that this says a file can be read; that is found out when it is.
            there[folder] = set(_names_in(root / folder))
        return file_name in there[folder]

    missing, broken = [], 0
    for row in rows:
        paths = [path for path in row[:3] if path and not is_there(path)]
        missing += paths
        broken += bool(paths)
    if not missing:
        return
    text = (
        f"{name}: {len(missing)} files are missing (looked for with any of the extensions "
        f"{', '.join(IMAGE_EXTENSIONS)}): {', '.join(str(root / path) for path in missing[:5])}"
        f"{' and so on' if len(missing) > 5 else ''}."
    )
    if not training or broken == len(rows):
        raise MissingFileError(text)
    logger.warning("%s Training leaves them out.", text)


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def files_of(samples: Iterable[Sample], root: Path) -> list[Path]:
    """List the files that samples are made of, and the folders that these are in."""
    roles = ("image", "alpha", "trimap", "background")
    paths = {getattr(sample, role) for sample in samples for role in roles} - {""}
    return [root / path for path in sorted(paths | {path.rpartition("/")[0] for path in paths})]


def join(folder: str, name: str) -> str:
    """Joins two parts of a path; an absolute second one stands alone."""
    return os.path.normpath(os.path.join(folder, name)) if folder else name


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except FileNotFoundError as error:
        raise MissingFileError(f"Cannot read {path}: {error.strerror}.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"Cannot read {path}: it is not a text file in UTF-8.") from error


def read_json(path: Path) -> Any:
    """Reads a label file.

    Raises:
        DataError: It cannot be read, or is not JSON.
    """
    text = _read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"Cannot read {path}: it is not valid JSON ({error}).") from error
