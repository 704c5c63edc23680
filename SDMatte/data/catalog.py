"""The data sets of the paper, one short entry each, and any folder pair (data/README.md).

An entry says only where a set keeps its files and what is peculiar to it; :func:`list_samples`
turns entries into sorted lists of :class:`Sample`. Nothing is read before that call.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from SDMatte.data.transparency import read_transparent_list
from SDMatte.errors import DataError
from SDMatte.image_io import IMAGE_EXTENSIONS, list_names, names_by_stem

logger = logging.getLogger(__name__)

DEFAULT_DATA_ROOT = "data/datasets"
BACKGROUNDS = "BG-20K"


def data_root(configured: str | Path | None = None) -> Path:
    """Says where data lies: ``SDMATTE_DATA_ROOT``, else the config, else ``data/datasets``."""
    return Path(os.environ.get("SDMATTE_DATA_ROOT") or configured or DEFAULT_DATA_ROOT).expanduser()


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

    @property
    def kind(self) -> str:
        """``"composite"`` where a background is given, else ``"natural"``."""
        return "composite" if self.background else "natural"


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


def _coco_files(root: Path, entry: Entry) -> list[Row]:
    """COCO-Matting: a JSON list of image_path and alpha_path, the trimaps beside the alphas."""
    label_file = root / entry.folder / "COCO_Matte.json"
    content = _read_json(label_file)
    items = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(items, list) or not all(
        isinstance(r, dict) and isinstance(r.get(key), str)
        for r in items
        for key in ("image_path", "alpha_path")
    ):
        raise DataError(f"{label_file} must be a list of entries with image_path and alpha_path.")
    # The paths start at the data root or at the set's own folder.
    from_root = bool(items) and (root / items[0]["alpha_path"]).exists()
    base = "" if from_root else entry.folder
    rows = []
    for item in items:
        trimap = item["alpha_path"].replace("alpha", "trimap")
        paths = (_join(base, path) for path in (item["image_path"], item["alpha_path"], trimap))
        rows.append(Row(*paths))
    return sorted(rows)


def _refmatte_rw_files(root: Path, entry: Entry) -> list[Row]:
    """RefMatte-RW-100: a label file names image and captions of each alpha, the last one counts."""
    images, alphas = _join(entry.folder, entry.image), _join(entry.folder, entry.alpha)
    labels = _read_json(root / entry.folder / "refmatte_rw100_label.json")
    by_stem = names_by_stem(root / images, preferred=".jpg")
    rows = []
    for name in list_names(root / alphas):
        label = labels.get(_stem(name)) if isinstance(labels, dict) else None
        if not isinstance(label, dict) or "image_name" not in label:
            raise DataError(f"refmatte_rw100_label.json has no image_name for {alphas}/{name}.")
        stem = label["image_name"]
        stem = _stem(stem) if stem.lower().endswith(IMAGE_EXTENSIONS) else stem
        image = _join(images, by_stem.get(stem, f"{stem}.jpg"))
        caption = str((label.get("expressions") or [""])[-1])
        rows.append(Row(image, _join(alphas, name), caption=caption))
    return rows


TRAIN_SETS: dict[str, Entry] = {
    "Composition-1K": Entry(
        "Combined_Dataset/Training_set",
        fg="combined_fg",
        alpha="combined_alpha",
        composites=3,
        expected=431,
    ),
    "DIS-646": Entry("Distinctions-646/Train", fg="FG", alpha="GT", composites=3, expected=596),
    # The released list builder makes 4 composites, the published schedule counts 2.
    "AM-2K": Entry(
        "AM-2K/train",
        image="original",
        fg="fg",
        alpha="mask",
        composites=2,
        is_trans=0,
        expected=1800,
    ),
    "UHRSD": Entry(
        ("UHRSD/UHRSD_TR_2K", "UHRSD/UHRSD_TE_2K"),
        image="image",
        alpha="mask",
        expected=4932 + 988,
    ),
    "RefMatte": Entry(
        "RefMatte/RefMatte/train",
        image="img",
        alpha="mask",
        is_trans=0,
        count=10_000,
        image_stem=lambda stem: stem.rpartition("_")[0],
    ),
    "P3M-10K": Entry(
        "P3M-10k/train", image="blurred_image", alpha="mask", is_trans=0, expected=9421
    ),
    "RWP-636": Entry(
        "RealWorldPortrait-636", image="image", alpha="alpha", is_trans=0, expected=636
    ),
    "Trans-460": Entry(
        "Transparent-460/Train",
        image="fg",
        fg="fg",
        alpha="alpha",
        composites=5,
        is_trans=1,
        expected=410,
    ),
    "COCO-Matting": Entry("COCO_Matting", files=_coco_files, expected=38_251),
}
"""Training sets by name (data/README.md, first table)."""

TEST_SETS: dict[str, Entry] = {
    "AIM-500": Entry("AIM-500", image="original", alpha="mask", trimap="trimap", expected=500),
    "AM-2K": Entry(
        "AM-2K/validation",
        image="original",
        alpha="mask",
        trimap="trimap",
        is_trans=0,
        expected=200,
    ),
    "P3M-500-NP": Entry(
        "P3M-10k/validation/P3M-500-NP",
        image="original_image",
        alpha="mask",
        is_trans=0,
        expected=500,
    ),
    "RefMatte-RW-100": Entry(
        "RefMatte_RW_100", image="image", alpha="mask", is_trans=0, files=_refmatte_rw_files
    ),
    "Trans-460": Entry(
        "Transparent-460/Test", image="fg", alpha="alpha", trimap="trimap", is_trans=1, expected=50
    ),
    "Composition-1K": Entry(
        "Combined_Dataset/Test_set",
        image="merged",
        alpha="alpha_copy",
        trimap="trimaps",
        expected=1000,
    ),
    "UHRSD": Entry("UHRSD/UHRSD_TE_2K", image="image", alpha="mask", expected=988),
}
"""Test sets by name (data/README.md, second table)."""

_ALIASES = {"RefMatte_RW_100": "RefMatte-RW-100", "COCO_Matting": "COCO-Matting"}
_SETTINGS = ("composites", "background", "is_trans", "count", "list_file", "remap")
_PAIR_KEYS = ("image", "alpha", "trimap", "composites", "background", "is_trans")


def list_samples(
    names: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    root: str | Path | None = None,
    training: bool = True,
) -> list[Sample]:
    """Lists the samples of data sets and folder pairs.

    Args:
        names: One or more of: a name of the catalogue; ``{"name": NAME, ...}`` with other values
            for composites, background, is_trans, count, list_file or remap; a folder pair
            ``{"image": DIR, "alpha": DIR}``, optionally with trimap, name, is_trans, and with
            composites (then the images are foregrounds, put on the pictures of ``background``).
            The folders of a pair are looked for from the current directory, then the data root.
        root: The data root of the config; see :func:`data_root`.
        training: Which of the two tables names are looked up in.

    Returns:
        Samples in the order of ``names``, within a set sorted by alpha.

    Raises:
        DataError: A name is unknown, a folder is missing or empty, or partners are missing: in
            test any, in training all of them (single ones are met, and counted, when loaded).
    """
    base = data_root(root)
    items = [names] if isinstance(names, str | Mapping) else list(names)
    if not items:
        raise DataError(f"No data set is named; known are {_known(training)} and folder pairs.")
    samples: list[Sample] = []
    for item in items:
        name, entry = resolve_set(item, base, training)
        found = list(samples_of_set(name, entry, base, training))
        if not found:
            raise DataError(f"The data set {name} is empty: no picture in {_places(entry, base)}.")
        logger.info("%s: %d samples", name, len(found))
        samples += found
    return samples


def _known(training: bool) -> str:
    return ", ".join(TRAIN_SETS if training else TEST_SETS)


def resolve_set(
    item: str | Mapping[str, Any], root: Path, training: bool = True
) -> tuple[str, Entry]:
    """Turns an item of the config into a name and an entry; ``root`` is the data root."""
    if not isinstance(item, str | Mapping):
        raise DataError(f"A data set is a name or {{image: DIR, alpha: DIR}}, not {item!r}.")
    options = {"name": item} if isinstance(item, str) else dict(item)
    if "image" in options or "alpha" in options:
        return _resolve_pair(options, root)
    name = str(options.pop("name", ""))
    name = _ALIASES.get(name, name)
    table = TRAIN_SETS if training else TEST_SETS
    if name not in table:
        kind, other = ("training", TEST_SETS) if training else ("test", TRAIN_SETS)
        hint = f" ({name} is no {kind} set)" if name in other else ""
        raise DataError(
            f"Unknown {kind} set {name!r}{hint}; known are {_known(training)}, and any folder "
            f"pair as {{image: DIR, alpha: DIR}}."
        )
    _check_keys(name, options, _SETTINGS)
    entry = replace(table[name], **_checked(name, options))
    one_folder = not entry.files and isinstance(entry.folder, str)
    unused = [] if one_folder else [k for k in ("count", "list_file", "remap") if k in options]
    if entry.composites and not entry.fg:
        unused.append("composites")
    if unused:
        raise DataError(f"{name} has no use for {', '.join(unused)}.")
    if not (entry.composites or entry.image or entry.files):
        raise DataError(f"{name} has foregrounds only: composites must be at least 1.")
    return name, entry


def _resolve_pair(options: dict[str, Any], root: Path) -> tuple[str, Entry]:
    """Makes an entry of a folder pair."""
    name = str(options.pop("name", "") or "pair")
    _check_keys("a folder pair", options, _PAIR_KEYS)
    if not options.get("image") or not options.get("alpha"):
        raise DataError("A folder pair needs both folders: {image: DIR, alpha: DIR}.")
    options = _checked(name, options)
    for key in ("image", "alpha", "trimap", "background"):
        if options.get(key):
            options[key] = _here_or_root(str(options[key]), root)
    if options.get("composites"):
        options["fg"] = options.pop("image")
    return name, Entry("", **options)


def _here_or_root(folder: str, root: Path) -> str:
    """Finds a user's folder; one in the data root stays relative to it."""
    path = Path(folder).expanduser()
    if not path.is_dir() and (root / path).is_dir():
        path = root / path
    path, base = path.absolute(), root.absolute()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


def _check_keys(name: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(f"{name}: unknown {', '.join(unknown)}; known are {', '.join(known)}.")


def _checked(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the values of settings; a list of a config becomes a tuple."""

    def refuse(key: str, allowed: str) -> DataError:
        return DataError(f"{name}: {key} must be {allowed}, not {options[key]!r}.")

    checked = dict(options)
    for key in ("composites", "count"):
        value = options.get(key, 0)
        if not (isinstance(value, int) and value >= 0 or key == "count" and value is None):
            raise refuse(key, "a number from 0")
    if options.get("is_trans") not in (None, 0, 1):
        raise refuse("is_trans", "0, 1 or null")
    if "remap" in options:
        remap = options["remap"]
        if isinstance(remap, str) or not isinstance(remap, Sequence) or len(remap) != 2:
            raise refuse("remap", "two prefixes, [OLD, NEW]")
        checked["remap"] = (str(remap[0]), str(remap[1]))
    return checked


def _places(entry: Entry, root: Path) -> str:
    folders = (entry.folder,) if isinstance(entry.folder, str) else entry.folder
    return " or ".join(str(root / folder / entry.alpha) for folder in folders)


def samples_of_set(
    name: str, entry: Entry, root: Path, training: bool, check_files: bool = True
) -> Iterator[Sample]:
    """Lists one set, as :func:`list_samples` does: its natural pictures, then its composites.

    ``check_files`` False leaves it to the caller to see which partners are missing.
    """
    if entry.folder and not root.is_dir():
        raise DataError(
            f"{name}: the data root {root} does not exist; set root in the config, or the "
            f"environment variable SDMATTE_DATA_ROOT."
        )
    listed = None if entry.is_trans == 1 else read_transparent_list(name, root)

    def opacity(alpha: str) -> int | None:
        return entry.is_trans if listed is None else int(_stem(alpha) in listed)

    if entry.image or entry.files:
        rows = entry.files(root, entry) if entry.files else _rows(root, entry, entry.image, ".jpg")
        if check_files:
            _check_files(name, rows, root, training)
        for row in rows:
            yield Sample(
                name, row.image, row.alpha, row.trimap, "", opacity(row.alpha), row.caption
            )
    if entry.fg and entry.composites > 0:
        rows = _rows(root, entry, entry.fg, ".png")
        if check_files:
            _check_files(name, rows, root, training)
        backgrounds = _backgrounds(root, entry)
        n = entry.composites
        for f, row in enumerate(rows):
            for i in range(n):
                background = backgrounds[(f * n + i) % len(backgrounds)]
                yield Sample(name, row.image, row.alpha, "", background, opacity(row.alpha))


def _rows(root: Path, entry: Entry, images: str, preferred: str) -> list[Row]:
    """Pairs each alpha with its image and trimap; a missing one gets its likely name."""
    rows = []
    for folder in (entry.folder,) if isinstance(entry.folder, str) else entry.folder:
        image_dir, trimap_dir = _join(folder, images), _join(folder, entry.trimap)
        by_stem = names_by_stem(root / image_dir, preferred)
        trimaps = names_by_stem(root / trimap_dir, ".png") if entry.trimap else {}
        alphas = _alphas(root, folder, entry)
        for alpha in alphas:
            stem = _stem(alpha)
            trimap = _join(trimap_dir, trimaps.get(stem, f"{stem}.png")) if entry.trimap else ""
            stem = entry.image_stem(stem) if entry.image_stem else stem
            image = _join(image_dir, by_stem.get(stem, f"{stem}{preferred}"))
            rows.append(Row(image, alpha, trimap))
        spare = sorted(by_stem.keys() - {_stem(alpha) for alpha in alphas})
        if spare and not (entry.image_stem or entry.list_file or entry.count is not None):
            name = _join(image_dir, by_stem[spare[0]])
            logger.warning("%d pictures have no alpha and are left out: %s ...", len(spare), name)
    return rows


def _alphas(root: Path, folder: str, entry: Entry) -> list[str]:
    """Lists the alphas of a folder, drawn or read from a list file where the entry says so."""
    directory = _join(folder, entry.alpha)
    if entry.list_file:
        path = Path(entry.list_file).expanduser()
        path = path if path.exists() else root / path
        old, new = entry.remap
        lines = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
        lines = [new + line[len(old) :] if old and line.startswith(old) else line for line in lines]
        return [line if "/" in line else _join(directory, line) for line in lines]
    names = list_names(root / directory)
    if entry.count is not None and entry.count < len(names):
        drawn = np.random.default_rng(0).choice(len(names), entry.count, replace=False)
        names = [names[i] for i in sorted(drawn)]
    return [_join(directory, name) for name in names]


def _backgrounds(root: Path, entry: Entry) -> list[str]:
    """Lists the backgrounds, in any sub-folders, sorted by their path."""
    top = root / entry.background
    found, seen = [], set()
    for directory, folders, _ in os.walk(top, followlinks=True):
        place = os.path.realpath(directory)
        if place in seen:  # links may lead back
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        folder = _join(entry.background, Path(directory).relative_to(top).as_posix())
        found += [_join(folder, name) for name in list_names(directory)]
    if not found:
        raise DataError(f"Composites need backgrounds, but there is no picture in {top}.")
    return sorted(found)


def _check_files(name: str, rows: Sequence[Row], root: Path, training: bool) -> None:
    """Complains of pictures and trimaps that are not there: by an error, or in the log."""
    there: dict[str, set[str]] = {}

    def is_there(path: str) -> bool:
        folder, _, file_name = path.rpartition("/")
        if folder not in there:
            directory = root / folder
            there[folder] = set(os.listdir(directory)) if directory.is_dir() else set()
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
        raise DataError(text)
    logger.warning("%s Training leaves them out.", text)


def _stem(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[0]


def _join(folder: str, name: str) -> str:
    """Joins two parts of a path; an absolute second one stands alone."""
    return os.path.normpath(os.path.join(folder, name)) if folder else name


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"Cannot read {path}: it is not a text file in UTF-8.") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except ValueError as error:
        raise DataError(f"Cannot read {path}: it is not valid JSON ({error}).") from error
