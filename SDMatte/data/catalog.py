"""The data sets of the paper, one short entry each, and folder pairs (data/README.md).

An entry holds only what is specific to a set. `list_samples` turns entries into samples; no file
is read before that.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from SDMatte.data.listing import Entry, Sample, join, read_json, samples_of_set
from SDMatte.errors import DataError
from SDMatte.images.formats import IMAGE_EXTENSIONS
from SDMatte.images.listing import list_names, names_by_stem
from SDMatte.runtime.files import expand_path, name_key, stem_key
from SDMatte.runtime.schema import Settings
from SDMatte.runtime.settings import PATH_KEYS

logger = logging.getLogger(__name__)


def data_root(configured: str | Path | None = None) -> Path:
    """Return the data root: ``SDMATTE_DATA_ROOT``, else the config's, else ``data/datasets``."""
    root = os.environ.get("SDMATTE_DATA_ROOT") or configured or "data/datasets"
    return Path(expand_path(root))


def _coco_files(root: Path, entry: Entry) -> list[Sample]:
    """List COCO-Matting from its JSON file; trimap paths follow from the alpha paths."""
    label_file = root / entry.folder / "COCO_Matte.json"
    content = read_json(label_file)
    items = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and isinstance(item.get(key), str)
        for item in items
        for key in ("image_path", "alpha_path")
    ):
        raise DataError(f"{label_file} must be a list of entries with image_path and alpha_path.")
    # Paths are relative to the data root or the set's folder. Single files may be missing, so the
    # first alpha alone does not tell which.
    from_root = any(os.path.exists(root / item["alpha_path"]) for item in islice(items, 100))
    base = "" if from_root else entry.folder
    samples = []
    for item in items:
        trimap = item["alpha_path"].replace("alpha", "trimap")
        paths = (join(base, path) for path in (item["image_path"], item["alpha_path"], trimap))
        samples.append(Sample(entry.name, *paths))
    return sorted(samples, key=lambda s: (s.image, s.alpha, s.trimap))


def _refmatte_rw_files(root: Path, entry: Entry) -> list[Sample]:
    """List RefMatte-RW-100 from its label file; the last caption of each alpha is used."""
    images, alphas = join(entry.folder, entry.image), join(entry.folder, entry.alpha)
    labels = read_json(root / entry.folder / "refmatte_rw100_label.json")
    by_stem = names_by_stem(root / images, preferred=".jpg")
    by_alpha = {name_key(k): v for k, v in labels.items()} if isinstance(labels, dict) else {}
    samples = []
    for name in list_names(root / alphas):
        label = by_alpha.get(name_key(os.path.splitext(name)[0]))
        if not isinstance(label, dict) or not isinstance(label.get("image_name"), str):
            raise DataError(f"refmatte_rw100_label.json has no image_name for {alphas}/{name}.")
        stem = label["image_name"]
        stem = os.path.splitext(stem)[0] if stem.lower().endswith(IMAGE_EXTENSIONS) else stem
        image = join(images, by_stem.get(stem_key(f"{stem}.jpg"), f"{stem}.jpg"))
        texts = label.get("expressions") or [""]
        caption = texts if isinstance(texts, str) else str(texts[-1])
        samples.append(Sample(entry.name, image, join(alphas, name), caption=caption))
    return samples


TRAIN_SETS: dict[str, Entry] = {
    "Composition-1K": Entry(
        "Combined_Dataset/Training_set",
        fg="combined_fg",
        alpha="combined_alpha",
        composites=3,
        expected=431,
    ),
    "DIS-646": Entry("Distinctions-646/Train", fg="FG", alpha="GT", composites=3, expected=596),
    # The released list builder makes 4 composites; the published schedule counts 2.
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


def _expand(path: Any) -> Any:
    return expand_path(path) if isinstance(path, str | os.PathLike) else path


_Path = Annotated[str, BeforeValidator(_expand)]


class _SetSettings(Settings):
    """Settings common to all data sets of a config."""

    name: str = Field("", description="Name of the set; of a pair, its name in results.")
    composites: int = Field(0, ge=0, description="Composites per foreground.")
    background: _Path = Field("", description="Folder of the composites' backgrounds.")
    is_trans: int | None = Field(
        None, ge=0, le=1, strict=False, description="1 transparent, 0 opaque, null: from the alpha."
    )
    weight: float | None = Field(
        None, gt=0, description="Weight in the training mix. To exclude a set, remove it."
    )
    optional: bool = Field(False, description="Skip a test set that is not found.")


class KnownSet(_SetSettings):
    """Settings of a set in the catalog: ``{name: NAME, ...}``."""

    count: int | None = Field(None, ge=0, description="Alphas to draw; null: all.")
    list_file: _Path = Field("", description="Text file with one alpha path per line.")
    remap: tuple[str, _Path] = Field(
        ("", ""), strict=False, description="[OLD, NEW]: replace the prefix OLD of its lines."
    )


class FolderPair(_SetSettings):
    """A folder of images and one of alphas with matching names: ``{image: DIR, alpha: DIR, ...}``.

    Relative folders are looked up in the current directory, then under the data root.
    """

    image: _Path = Field("", description="Folder of the images or, with composites, foregrounds.")
    alpha: _Path = Field("", description="Folder of the alphas.")
    trimap: _Path = Field("", description="Folder of the trimaps.")
    holdout: Any = Field(None, description="Pairs held out for testing: a fraction or a number.")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name == ".." or Path(name).name != name:
            raise ValueError("must not be a path: it is also the name of a folder")
        return name

    @field_validator("holdout")
    @classmethod
    def _check_holdout(cls, value: Any) -> float | int | None:
        fits = 0 < value < 1 if isinstance(value, float) else type(value) is int and value > 0
        if value is not None and not fits:
            raise ValueError("must be a fraction between 0 and 1 or a number of images")
        return value


def list_samples(
    names: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    root: str | Path | None = None,
    training: bool = True,
) -> list[Sample]:
    """Return the samples of `list_sets` as one list, set by set."""
    return [s for _, samples in list_sets(names, root, training) for s in samples]


def list_sets(
    names: Any, root: str | Path | None = None, training: bool = True
) -> list[tuple[Entry, list[Sample]]]:
    """List the samples of each data set.

    Args:
        names: A data set or a list of them: names in the catalog, or mappings with the settings
            of `KnownSet` or `FolderPair`.
        root: The data root of the config; see `data_root`.
        training: Whether to look up names in `TRAIN_SETS` rather than `TEST_SETS`.

    Raises:
        ConfigError: A setting is unknown or not allowed.
        DataError: A name is unknown, a folder is missing or empty, or files are missing; in
            training, only if every sample lacks one (others fail when they are loaded).
    """
    items = [names] if isinstance(names, str | Mapping) else names
    if not isinstance(items, Sequence):
        raise DataError(f"Data sets must be a list of names and folder pairs; got {names!r}.")
    if not items:
        raise DataError(f"No data set given; known are {_known(training)} and folder pairs.")
    base = data_root(root)
    sets = []
    for item in items:
        entry = resolve_set(item, base, training)
        samples = list(samples_of_set(entry, base, training))
        if not samples:
            places = " or ".join(str(base / folder / entry.alpha) for folder in entry.roots)
            raise DataError(f"The data set {entry.name} is empty: no image in {places}.")
        logger.info("%s: %d samples", entry.name, len(samples))
        sets.append((entry, samples))
    return sets


def is_pair(item: Any) -> bool:
    """Return whether an item of a config is a folder pair."""
    return isinstance(item, Mapping) and not {"image", "alpha"}.isdisjoint(item)


def is_known(name: Any) -> bool:
    """Return whether a training or test set has this name."""
    return isinstance(name, str) and _ALIASES.get(name, name) in {*TRAIN_SETS, *TEST_SETS}


def is_there(item: str | Mapping[str, Any], root: str | Path | None = None) -> bool:
    """Return whether a folder of a test set exists, complete or not; see `resolve_set`."""
    base = data_root(root)
    return resolve_set(item, base, training=False).exists(base)


def _known(training: bool) -> str:
    return ", ".join(TRAIN_SETS if training else TEST_SETS)


def resolve_set(item: str | Mapping[str, Any], root: Path, training: bool = True) -> Entry:
    """Return the entry of a data set in a config.

    Args:
        item: A name or a mapping; see `list_sets`.
        root: The data root.
        training: Whether to look for a training set rather than a test set.

    Raises:
        ConfigError: A setting is unknown or not allowed.
        DataError: The set is unknown.
    """
    if not isinstance(item, str | Mapping):
        raise DataError(f"A data set must be a name or {{image: DIR, alpha: DIR}}; got {item!r}.")
    options = {"name": item} if isinstance(item, str) else {str(k): v for k, v in item.items()}
    options = {k: v for k, v in options.items() if k not in PATH_KEYS or v not in (None, "")}
    name = options["name"] = str(options.get("name") or "")
    misplaced = "optional" if training else "weight"
    if misplaced in options:
        kind = "test" if training else "training"
        raise DataError(f"{name or 'pair'}: {misplaced} is a setting of {kind} sets only.")
    if is_pair(item):
        return _resolve_pair(options, root)
    name = _ALIASES.get(name, name)
    table = TRAIN_SETS if training else TEST_SETS
    if name not in table:
        kind, other = ("training", TEST_SETS) if training else ("test", TRAIN_SETS)
        hint = f" ({name} is not a {kind} set)" if name in other else ""
        raise DataError(
            f"Unknown {kind} set {name!r}{hint}; known are {_known(training)}, and any folder "
            f"pair as {{image: DIR, alpha: DIR}}."
        )
    entry = replace(table[name], name=name, **_given(KnownSet.of(options, name)))
    one_folder = not entry.files and isinstance(entry.folder, str)
    unused = [] if one_folder else [k for k in ("count", "list_file", "remap") if k in options]
    if entry.composites and not entry.fg:
        unused.append("composites")
    if unused:
        raise DataError(f"{name} does not use {', '.join(unused)}.")
    if not (entry.is_natural or entry.is_composite):
        raise DataError(f"{name} has foregrounds only: composites must be at least 1.")
    return entry


def _given(settings: _SetSettings) -> dict[str, Any]:
    """Return the fields of an entry that were set explicitly."""
    return settings.model_dump(exclude_unset=True, exclude={"name", "optional"})


def _resolve_pair(options: Mapping[str, Any], root: Path) -> Entry:
    """Return the entry of a folder pair."""
    name = options["name"] or "pair"
    pair = FolderPair.of(options, name)
    if not pair.image or not pair.alpha:
        raise DataError("A folder pair needs both folders: {image: DIR, alpha: DIR}.")
    if pair.composites and pair.trimap:
        raise DataError(f"{name} does not use trimap: the trimap of a composite is computed.")
    if pair.background and not pair.composites:
        raise DataError(f"{name} does not use background: composites is 0.")
    if pair.composites and pair.holdout is not None:
        raise DataError(
            f"{name}: holdout does not work with composites, which are made from foregrounds; "
            f"hold out a pair of images and alphas instead."
        )
    given = _given(pair)
    for key in ("image", "alpha", "trimap", "background"):
        if key in given:
            given[key] = _here_or_root(given[key], root)
    if pair.composites:
        given["fg"] = given.pop("image")
    return Entry("", name=name, **given)


def _here_or_root(folder: str, root: Path) -> str:
    """Resolve a user's folder; the result is relative if it lies under the data root."""
    path = Path(folder)
    if not os.path.isdir(path) and os.path.isdir(root / path):
        path = root / path
    path, base = path.absolute(), root.absolute()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
