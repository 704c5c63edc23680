"""The data sets of the paper, one short entry each, and any folder pair (data/README.md).

An entry says only where a set keeps its files and what is peculiar to it; `list_samples`
turns entries into sorted lists of `Sample`. Nothing is read before that call.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from SDMatte.data.listing import (
    Entry,
    Row,
    Sample,
    join,
    read_json,
    samples_of_set,
)
from SDMatte.errors import DataError
from SDMatte.images.io import IMAGE_EXTENSIONS, list_names, names_by_stem
from SDMatte.runtime.files import name_key, stem_key
from SDMatte.runtime.paths import expand_path
from SDMatte.runtime.settings import PATH_KEYS

logger = logging.getLogger(__name__)

DEFAULT_DATA_ROOT = "data/datasets"


def data_root(configured: str | Path | None = None) -> Path:
    """Return the data root: ``SDMATTE_DATA_ROOT``, else the config's, else ``data/datasets``."""
    root = os.environ.get("SDMATTE_DATA_ROOT") or configured or DEFAULT_DATA_ROOT
    return Path(expand_path(root))


def _coco_files(root: Path, entry: Entry) -> list[Row]:
    """COCO-Matting: a JSON list of image_path and alpha_path, the trimaps beside the alphas."""
    label_file = root / entry.folder / "COCO_Matte.json"
    content = read_json(label_file)
    items = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(items, list) or not all(
        isinstance(r, dict) and isinstance(r.get(key), str)
        for r in items
        for key in ("image_path", "alpha_path")
    ):
        raise DataError(f"{label_file} must be a list of entries with image_path and alpha_path.")
    # The paths start at the data root or at the set's own folder; single files may be missing.
    from_root = any(os.path.exists(root / item["alpha_path"]) for item in islice(items, 100))
    base = "" if from_root else entry.folder
    rows = []
    for item in items:
        trimap = item["alpha_path"].replace("alpha", "trimap")
        paths = (join(base, path) for path in (item["image_path"], item["alpha_path"], trimap))
        rows.append(Row(*paths))
    return sorted(rows)


def _refmatte_rw_files(root: Path, entry: Entry) -> list[Row]:
    """RefMatte-RW-100: a label file names image and captions of each alpha, the last one counts."""
    images, alphas = join(entry.folder, entry.image), join(entry.folder, entry.alpha)
    labels = read_json(root / entry.folder / "refmatte_rw100_label.json")
    by_stem = names_by_stem(root / images, preferred=".jpg")
    rows = []
    by_alpha = {name_key(k): v for k, v in labels.items()} if isinstance(labels, dict) else {}
    for name in list_names(root / alphas):
        label = by_alpha.get(name_key(os.path.splitext(name)[0]))
        if not isinstance(label, dict) or not isinstance(label.get("image_name"), str):
            raise DataError(f"refmatte_rw100_label.json has no image_name for {alphas}/{name}.")
        stem = label["image_name"]
        stem = os.path.splitext(stem)[0] if stem.lower().endswith(IMAGE_EXTENSIONS) else stem
        image = join(images, by_stem.get(stem_key(f"{stem}.jpg"), f"{stem}.jpg"))
        texts = label.get("expressions") or [""]
        caption = texts if isinstance(texts, str) else str(texts[-1])
        rows.append(Row(image, join(alphas, name), caption=caption))
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
_PAIR_KEYS = ("image", "alpha", "trimap", "composites", "background", "is_trans", "holdout")


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
            composites (then the images are foregrounds, put on the pictures of ``background``)
            or holdout (then a part of the pairs is for test, and the others are for training).
            The folders of a pair are looked for from the current directory, then the data root.
        root: The data root of the config; see `data_root`.
        training: Which of the two tables names are looked up in.

    Returns:
        Samples in the order of ``names``, within a set sorted by alpha.

    Raises:
        DataError: A name is unknown, a folder is missing or empty, or partners are missing: in
            test any, in training all of them (single ones are met, and counted, when loaded).
    """
    base = data_root(root)
    samples: list[Sample] = []
    for item in items_of(names, training):
        name, entry = resolve_set(item, base, training)
        found = list(samples_of_set(name, entry, base, training))
        if not found:
            raise DataError(f"The data set {name} is empty: no picture in {_places(entry, base)}.")
        logger.info("%s: %d samples", name, len(found))
        samples += found
    return samples


def items_of(names: Any, training: bool = True) -> list[Any]:
    """The sets that a config names, one or several of them, as a list.

    Raises:
        DataError: There is none, or it is no list.
    """
    if isinstance(names, str | Mapping):
        return [names]
    if not isinstance(names, Sequence):
        raise DataError(f"The data sets are a list of names and folder pairs, not {names!r}.")
    if not names:
        raise DataError(f"No data set is named; known are {_known(training)} and folder pairs.")
    return list(names)


def is_known(name: Any) -> bool:
    """Whether a training or test set has this name."""
    return isinstance(name, str) and _ALIASES.get(name, name) in {*TRAIN_SETS, *TEST_SETS}


def is_there(item: str | Mapping[str, Any], root: str | Path | None = None) -> bool:
    """Return whether a test set has a folder, complete or not.

    Args:
        item: The set, as the config has it.
        root: The data root of the config.

    Raises:
        DataError: There is no such test set, or it has no such setting.
    """
    base = data_root(root)
    _, entry = resolve_set(item, base, training=False)
    return any(os.path.isdir(base / folder) for folder in folders_of(entry))


def folders_of(entry: Entry) -> tuple[str, ...]:
    """The folders of a set, or the two of a folder pair."""
    folders = (entry.folder,) if isinstance(entry.folder, str) else entry.folder
    return folders if any(folders) else (entry.image or entry.fg, entry.alpha)


def _known(training: bool) -> str:
    return ", ".join(TRAIN_SETS if training else TEST_SETS)


def resolve_set(
    item: str | Mapping[str, Any], root: Path, training: bool = True
) -> tuple[str, Entry]:
    """Turns an item of the config into a name and an entry; ``root`` is the data root.

    Raises:
        DataError: There is no such set, or it has no such setting.
    """
    if not isinstance(item, str | Mapping):
        raise DataError(f"A data set is a name or {{image: DIR, alpha: DIR}}, not {item!r}.")
    options = {"name": item} if isinstance(item, str) else dict(item)
    if not training:
        options.pop("optional", None)  # by now it has been decided that the set is used
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
    if name == ".." or Path(name).name != name:
        raise DataError(f"The name of a folder pair also names folders; {name!r} cannot.")
    _check_keys("a folder pair", options, _PAIR_KEYS)
    options = _checked(name, options)
    if not options.get("image") or not options.get("alpha"):
        raise DataError("A folder pair needs both folders: {image: DIR, alpha: DIR}.")
    unused = "trimap" if options.get("composites") else "background"
    if unused in options:
        kind = "a composite gets its own" if options.get("composites") else "composites is 0"
        raise DataError(f"{name} has no use for {unused}: {kind}.")
    if "holdout" in options and options.get("composites"):
        raise DataError(
            f"{name}: holdout keeps image pairs for validation, and composites makes new images "
            f"of foregrounds; hold out a pair of images and alphas instead."
        )
    for key in ("image", "alpha", "trimap", "background"):
        if key in options:
            options[key] = _here_or_root(options[key], root)
    if options.get("composites"):
        options["fg"] = options.pop("image")
    return name, Entry("", **options)


def _here_or_root(folder: str, root: Path) -> str:
    """Finds a user's folder; one in the data root stays relative to it."""
    path = Path(folder)
    if not os.path.isdir(path) and os.path.isdir(root / path):
        path = root / path
    path, base = path.absolute(), root.absolute()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


def _check_keys(name: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(map(str, set(options) - set(known)))
    if unknown:
        raise DataError(f"{name}: unknown {', '.join(unknown)}; known are {', '.join(known)}.")


def _checked(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the values of settings; paths that are null count as not given."""

    def refuse(key: str, allowed: str) -> DataError:
        return DataError(f"{name}: {key} must be {allowed}, not {options[key]!r}.")

    checked = {k: v for k, v in options.items() if k not in PATH_KEYS or v not in (None, "")}
    for key in ("composites", "count"):
        value = options.get(key, 0)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not (is_number and value >= 0 or key == "count" and value is None):
            raise refuse(key, "a number from 0")
    for key in PATH_KEYS:
        if key in checked:
            if not isinstance(checked[key], str | os.PathLike):
                raise refuse(key, "a path")
            checked[key] = expand_path(checked[key])
    if options.get("is_trans") not in (None, 0, 1):
        raise refuse("is_trans", "0, 1 or null")
    if not _is_holdout(options.get("holdout")):
        raise refuse("holdout", "a fraction between 0 and 1 or a number of images from 1")
    if "remap" in options:
        remap = options["remap"]
        if isinstance(remap, str) or not isinstance(remap, Sequence) or len(remap) != 2:
            raise refuse("remap", "two prefixes, [OLD, NEW]")
        checked["remap"] = (str(remap[0]), expand_path(str(remap[1])))
    return checked


def _is_holdout(value: Any) -> bool:
    if isinstance(value, float):
        return 0 < value < 1
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _places(entry: Entry, root: Path) -> str:
    folders = (entry.folder,) if isinstance(entry.folder, str) else entry.folder
    return " or ".join(str(root / folder / entry.alpha) for folder in folders)
