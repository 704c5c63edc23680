"""List the samples of a data set from its file names; images are not opened.

An `Entry` describes a set (`SDMatte.data.catalog` has those of the paper). Each alpha is matched to
its image and trimap. Unreadable paths count as missing or raise `SDMatte.errors.DataError`.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from SDMatte.errors import DataError, MissingFileError
from SDMatte.images.formats import IMAGE_EXTENSIONS
from SDMatte.images.listing import list_names, names_by_stem, scan_folder
from SDMatte.runtime.files import NameLookup, name_key, read_error, stem_key

logger = logging.getLogger(__name__)

BACKGROUNDS = "BG-20K"

REPOSITORY_LISTS = Path(__file__).resolve().parents[2] / "data" / "txt"
"""Fallback folder for lists of transparent samples; those under the data root take precedence."""

_FILES = ("image", "alpha", "trimap", "background")


@dataclass(frozen=True)
class Sample:
    """The files of a training or test sample; paths are relative to the data root or absolute.

    Attributes:
        dataset: Name of the set, as in the catalog.
        image: The image; for a composite, the foreground.
        alpha: The true alpha.
        trimap: The trimap; "": it is computed from the alpha.
        background: The background of a composite; "" for a natural image.
        is_trans: 1: transparent; 0: opaque; None: determined from the alpha when it is read.
        caption: Text for the text encoder, or "".
    """

    dataset: str
    image: str
    alpha: str
    trimap: str = ""
    background: str = ""
    is_trans: int | None = None
    caption: str = ""


@dataclass(frozen=True)
class Entry:
    """The folder layout of a data set, and how samples are made from its files.

    Attributes that are not listed here are config settings: see
    `SDMatte.data.catalog.KnownSet` and `SDMatte.data.catalog.FolderPair`.

    Attributes:
        folder: Folder or folders of the set under the data root; "" for a folder pair.
        alpha: Sub-folder of the alphas; each alpha becomes one or more samples.
        image: Sub-folder of the natural images, or "".
        fg: Sub-folder of the foregrounds for composites, or "".
        trimap: Sub-folder of the trimaps; "": trimaps are computed from the alphas.
        is_trans: 1: all transparent; 0: opaque unless on the set's list; None: given by the list,
            or determined from the alpha if there is no list.
        image_stem: Maps the stem of an alpha to that of its image.
        files: Function that lists the samples of a set with a label file.
        expected: Number of alphas of the published set, if known.
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
    files: "Callable[[Path, Entry], list[Sample]] | None" = None
    count: int | None = None
    list_file: str = ""
    remap: tuple[str, str] = ("", "")
    expected: int | None = None
    holdout: float | int | None = None
    name: str = ""
    weight: float | None = None

    @property
    def roots(self) -> tuple[str, ...]:
        """Folders of the set under the data root."""
        return (self.folder,) if isinstance(self.folder, str) else self.folder

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the set; for a folder pair, both of them."""
        return self.roots if any(self.roots) else (self.image or self.fg, self.alpha)

    def exists(self, root: Path) -> bool:
        """Return whether a folder of the set exists under a data root, complete or not."""
        return any(os.path.isdir(root / folder) for folder in self.folders)

    @property
    def is_natural(self) -> bool:
        """Whether images are used as they are."""
        return bool(self.image or self.files)

    @property
    def is_composite(self) -> bool:
        """Whether foregrounds are composited onto backgrounds."""
        return bool(self.fg and self.composites)

    @property
    def uses_all_images(self) -> bool:
        """Whether every image of the set belongs to a sample."""
        partial = self.files or self.image_stem or self.list_file
        return not partial and self.count is None and self.holdout is None


def samples_of_set(
    entry: Entry, root: Path, training: bool, check_files: bool = True
) -> Iterator[Sample]:
    """Yield the samples of a set: natural images, then composites.

    Args:
        entry: The set.
        root: The data root.
        training: Whether to list for training, where missing files are only logged; they count
            as unreadable when their sample is loaded.
        check_files: Whether to look for missing files.

    Raises:
        DataError: A folder or list is unreadable, or files are missing; in training, only if
            every sample lacks one.
    """
    if entry.folder and not os.path.isdir(root):
        raise MissingFileError(
            f"{entry.name}: data root {root} not found. Set root in the config, or the environment "
            f"variable SDMATTE_DATA_ROOT."
        )
    listed = None if entry.is_trans == 1 else read_transparent_list(entry.name, root)

    def located(samples: list[Sample]) -> Iterator[Sample]:
        for sample in _locate(samples, entry.name, root, training, check_files):
            is_trans = entry.is_trans if listed is None else int(stem_key(sample.alpha) in listed)
            yield replace(sample, dataset=entry.name, is_trans=is_trans)

    if entry.is_natural:
        samples = entry.files(root, entry) if entry.files else _pair_files(root, entry)
        if entry.holdout is not None:
            samples = _split_holdout(samples, entry, training)
        yield from located(samples)
    if entry.is_composite:
        foregrounds = list(located(_pair_files(root, replace(entry, image="", trimap=""))))
        backgrounds = list_backgrounds(root, entry.background)
        if not backgrounds:
            raise MissingFileError(
                f"{entry.name}: composites need backgrounds, but no image was found in "
                f"{root / entry.background}. Set another folder with {{..., background: DIR}}."
            )
        for number, foreground in enumerate(foregrounds):
            for i in range(number * entry.composites, (number + 1) * entry.composites):
                yield replace(foreground, background=backgrounds[i % len(backgrounds)])


def _pair_files(root: Path, entry: Entry) -> list[Sample]:
    """Pair each alpha with its image or foreground and trimap; guess the names of missing files."""
    images, preferred = (entry.image, ".jpg") if entry.image else (entry.fg, ".png")
    samples = []
    for folder in entry.roots:
        image_dir, trimap_dir = join(folder, images), join(folder, entry.trimap)
        used = [image_dir]
        used += [] if entry.list_file else [join(folder, entry.alpha)]
        used += [trimap_dir] if entry.trimap else []
        for directory in dict.fromkeys(used):
            scan_folder(root / directory, skip=[root / other for other in used]).log_left_out()
        by_stem = names_by_stem(root / image_dir, preferred)
        trimaps = names_by_stem(root / trimap_dir, ".png") if entry.trimap else {}
        for alpha in _alphas(root, folder, entry):
            stem = stem_key(alpha)
            trimap = join(trimap_dir, trimaps.get(stem, f"{stem}.png")) if entry.trimap else ""
            stem = entry.image_stem(stem) if entry.image_stem else stem
            image = join(image_dir, by_stem.get(stem, f"{stem}{preferred}"))
            samples.append(Sample("", image, alpha, trimap))
    if entry.uses_all_images or entry.holdout is not None:
        spare = images_without_alpha(samples, root)
        if spare:
            logger.warning("%d images have no alpha and are left out: %s ...", len(spare), spare[0])
    return samples


def images_without_alpha(samples: Iterable[Sample], root: Path) -> list[str]:
    """List the images in the folders of sample images that belong to no sample, by path."""
    used: dict[str, set[str]] = {}
    for sample in samples:
        used.setdefault(os.path.dirname(sample.image), set()).add(stem_key(sample.image))
    return [
        join(folder, name)
        for folder, stems in sorted(used.items())
        if os.path.isdir(root / folder)
        for name in list_names(root / folder)
        if stem_key(name) not in stems
    ]


def _split_holdout(samples: list[Sample], entry: Entry, training: bool) -> list[Sample]:
    """Return the training part of a set, or the part held out for testing.

    The split depends on a hash of the normalized name, so it is the same on every machine. With a
    fraction, files added later do not move existing ones; with a number, an added file may replace
    a held-out one. Neither part may be empty.
    """

    def position(sample: Sample) -> float:  # in [0, 1)
        name = stem_key(sample.alpha).encode("utf-8", "surrogateescape")
        return int.from_bytes(hashlib.sha256(name).digest()[:6], "big") / 2**48

    holdout, total = entry.holdout, len(samples)
    if isinstance(holdout, int):
        held = set(sorted(samples, key=lambda s: (position(s), s.alpha))[:holdout])
    else:
        held = {sample for sample in samples if position(sample) < holdout}
    if samples and len(held) in (0, total):
        reason = (
            f"none of {total} images; use a larger fraction, or a number such as "
            f"{max(1, total // 10)}"
            if not held
            else f"all {total} images, which leaves none to train on"
        )
        raise DataError(f"{entry.name}: holdout={holdout} holds out {reason}.")
    return [sample for sample in samples if (sample in held) != training]


def _alphas(root: Path, folder: str, entry: Entry) -> list[str]:
    """List the alphas of a folder: all, a fixed random subset, or those in a list file."""
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
    """List the images of a background folder and its sub-folders, sorted by path."""
    top = root / background
    if not os.path.isdir(top):
        return []
    scan = scan_folder(top, recursive=True)
    scan.log_left_out()
    return sorted(join(background, name) for name in scan.images)


def _locate(
    samples: Sequence[Sample], name: str, root: Path, training: bool, check_files: bool
) -> list[Sample]:
    """Replace the spelling of file names by that on disk, and report missing files."""
    lookup = NameLookup()
    missing: list[str] = []

    def locate(path: str) -> str:
        folder, _, name = path.rpartition("/")
        try:
            names = lookup.spellings(root / folder).get(name_key(name), [])
        except ValueError:  # the folder does not exist, or the name is invalid
            names = []
        if name in names or not path:
            return path
        if len(names) > 1:
            raise DataError(f"{root / path} is ambiguous: {' and '.join(map(ascii, names))} exist.")
        if not names:
            missing.append(path)
            return path
        return join(folder, names[0])

    located, incomplete = [], 0
    for sample in samples:
        before = len(missing)
        image, alpha, trimap = map(locate, (sample.image, sample.alpha, sample.trimap))
        located.append(replace(sample, image=image, alpha=alpha, trimap=trimap))
        incomplete += len(missing) > before
    if missing and check_files:
        number = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        text = (
            f"{name}: {number} missing (with any of the extensions {', '.join(IMAGE_EXTENSIONS)}): "
            f"{', '.join(str(root / path) for path in missing[:5])}"
            f"{' and so on' if len(missing) > 5 else ''}."
        )
        if not training or incomplete == len(samples):
            raise MissingFileError(text)
        logger.warning("%s Training skips them.", text)
    return located


def files_of(samples: Iterable[Sample], root: Path) -> list[Path]:
    """List the files of samples and the folders that contain them."""
    paths = {getattr(sample, key) for sample in samples for key in _FILES} - {""}
    return [root / path for path in sorted(paths | {path.rpartition("/")[0] for path in paths})]


def join(folder: str, name: str) -> str:
    """Join two parts of a path; an absolute second part replaces the first."""
    return os.path.normpath(os.path.join(folder, name)) if folder else name


def read_transparent_list(dataset: str, root: Path) -> frozenset[str] | None:
    """Read ``txt/<dataset>_transparent_samples.txt``, which has one file name per line.

    The file is looked up under the data root, then in ``data/txt`` of the repository.

    Returns:
        The stems of the transparent samples (`SDMatte.runtime.files.stem_key`); None if there is
        no list.
    """
    name = f"{dataset}_transparent_samples.txt"
    for path in (root / "txt" / name, REPOSITORY_LISTS / name):
        if os.path.isfile(path):
            lines = map(str.strip, _read_text(path).splitlines())
            return frozenset(stem_key(line) for line in lines if line)
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except OSError as error:
        raise read_error(path, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"Cannot read {path}: it must be a text file in UTF-8.") from error


def read_json(path: Path) -> Any:
    """Read a JSON label file."""
    text = _read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"Cannot read {path}: it is not valid JSON ({error}).") from error
