"""Miniature trees: drawn pictures in the folders, and under the file names, of the known sets.

They stand in for sets that cannot be passed on: to see what a tree has to look like, and to try
listing, training and testing on each of them.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS
from SDMatte.data.listing import BACKGROUNDS, Entry
from SDMatte.errors import DataError, OutputError
from SDMatte.images.io import write_image
from SDMatte.samples.drawing import Rng
from SDMatte.samples.photos import background, textures
from SDMatte.samples.registry import foreground
from SDMatte.samples.sample_set import sides, trimap

logger = logging.getLogger(__name__)

LAYOUTS = tuple(dict.fromkeys((*TRAIN_SETS, *TEST_SETS, BACKGROUNDS)))
"""Names that `make_layouts` knows."""

_OPAQUE = ("hair", "solid", "fur", "figure", "leaves")
_TRANSPARENT = ("glass", "veil", "smoke")


@dataclass(frozen=True)
class _Tree:
    """One part of a set, to be written.

    Attributes:
        name: Of the set.
        entry: Its folders, as the catalogue has them, and what else there is.
        stem: File names without extension, made of ``i``, the picture's number, and ``hash``.
        held_out: Whether it is a test part, which shows other photographs than training.
        image_extension: Of the pictures.
        fg_extensions: Of the foregrounds, in turn.
        objects: In each picture; where there are several, their number ends the alphas' names.
    """

    name: str
    entry: Entry
    stem: str
    held_out: bool = False
    image_extension: str = ".jpg"
    fg_extensions: tuple[str, ...] = (".png",)
    objects: int = 1


@dataclass(frozen=True)
class _Alpha:
    """What is known of an alpha that was written: file names, object, and where it stands."""

    image: str
    name: str
    kind: str
    is_transparent: bool
    side: str


_COCO = replace(TRAIN_SETS["COCO-Matting"], image="train2017", alpha="alpha", trimap="trimap")
_P3M_TEST = replace(TEST_SETS["P3M-500-NP"], trimap="trimap")  # is there, and not used
_TREES = (
    _Tree(
        "Composition-1K",
        TRAIN_SETS["Composition-1K"],
        "{i}-12{hash}dfXY",
        fg_extensions=(".png", ".jpg"),
    ),
    _Tree("DIS-646", TRAIN_SETS["DIS-646"], "{i}"),
    _Tree("AM-2K", TRAIN_SETS["AM-2K"], "m_{hash}"),
    _Tree("UHRSD", TRAIN_SETS["UHRSD"], "{hash}_{i}"),
    _Tree("RefMatte", TRAIN_SETS["RefMatte"], "rim_train_{i:08d}", objects=2),
    _Tree("P3M-10K", TRAIN_SETS["P3M-10K"], "p_{hash}"),
    _Tree("RWP-636", TRAIN_SETS["RWP-636"], "{i:04d}"),
    _Tree("Trans-460", TRAIN_SETS["Trans-460"], "{hash}"),
    _Tree("COCO-Matting", _COCO, "{i:012d}", objects=2),
    _Tree("AIM-500", TEST_SETS["AIM-500"], "o_{hash}", held_out=True),
    _Tree("AM-2K", TEST_SETS["AM-2K"], "m_{hash}", held_out=True),
    _Tree("P3M-500-NP", _P3M_TEST, "p_{hash}", held_out=True),
    _Tree("RefMatte-RW-100", TEST_SETS["RefMatte-RW-100"], "p_{hash}", held_out=True, objects=2),
    _Tree("Trans-460", TEST_SETS["Trans-460"], "{hash}", held_out=True),
    _Tree(
        "Composition-1K",
        TEST_SETS["Composition-1K"],
        "boy-1518482_1920_{i}",
        held_out=True,
        image_extension=".png",
    ),
    # The test part of UHRSD is one of the folders of its training entry.
)


def make_layouts(
    root: str | os.PathLike,
    names: Sequence[str] | None = None,
    *,
    num: int = 3,
    size: int = 128,
    seed: int = 0,
) -> Path:
    """Writes miniature trees of known sets, to be used as data root.

    Each has few drawn pictures, but its own folders, kinds of file name, extensions, trimaps and
    label files; lists of transparent samples lie in ``txt``. The same arguments give the same
    bytes, and a set's files do not depend on which others are written.

    Args:
        root: A new or empty folder.
        names: Of `LAYOUTS`, None for all. A set with a training and a test part gets both;
            a set that is composited brings backgrounds along.
        num: Pictures in each folder. Those of RefMatte, RefMatte-RW-100 and COCO-Matting have
            two alphas each.
        size: About the length of a side, in pixels.
        seed: Of all randomness.

    Returns:
        The folder.

    Raises:
        DataError: A name is unknown, a number is out of range, or the folder holds something.
    """
    root = Path(root).expanduser().resolve()
    names = LAYOUTS if names is None else tuple(names)
    unknown = [name for name in names if name not in LAYOUTS]
    if unknown or not names:
        what = repr(unknown[0]) if unknown else "nothing"
        raise DataError(f"There is no layout of {what}; known are {', '.join(LAYOUTS)}.")
    if num < 1 or size < 64 or seed < 0:
        raise DataError(
            f"Layouts need num of at least 1, size of at least 64 and seed of at least 0, "
            f"not {num}, {size} and {seed}."
        )
    # Nothing drawn may ever get in among real pictures.
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} is not an empty folder; name a new or an empty one.")
    trees = [tree for tree in _TREES if tree.name in names]
    draft = root.with_name(f".{root.name}.partial")  # beside it, so that a rename can put it there
    shutil.rmtree(draft, ignore_errors=True)
    try:
        for tree in trees:
            _write_tree(draft, tree, num, size, seed)
        if BACKGROUNDS in names or any(tree.entry.composites for tree in trees):
            _write_backgrounds(draft, num, size, seed)
        if root.exists():
            root.rmdir()
        os.replace(draft, root)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"Cannot write to {root}: {error.strerror}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    logger.info("Wrote miniature trees of %s to %s.", ", ".join(names), root)
    return root


def _write_tree(root: Path, tree: _Tree, num: int, size: int, seed: int) -> None:
    """Writes one part of a set, its label file, and its list of transparent samples."""
    folders = tree.entry.folder
    alphas = []
    for folder in (folders,) if isinstance(folders, str) else folders:
        for i in range(num):
            rng = np.random.default_rng([seed, zlib.crc32(folder.encode()), i])
            alphas += _write_picture(root / folder, tree, i, size, rng)
        if tree.name == "COCO-Matting":
            _write_json(root / folder / "COCO_Matte.json", _coco_labels(alphas))
        elif tree.name == "RefMatte-RW-100":
            _write_json(root / folder / "refmatte_rw100_label.json", _refmatte_rw_labels(alphas))
    if tree.entry.is_trans is None:
        path = root / "txt" / f"{tree.name}_transparent_samples.txt"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:  # both parts of a set share one
            file.writelines(f"{alpha.name}\n" for alpha in alphas if alpha.is_transparent)


def _write_picture(folder: Path, tree: _Tree, i: int, size: int, rng: Rng) -> list[_Alpha]:
    """Writes a picture, and the foreground, alpha and trimap of each object that the set has.

    Several objects stand side by side, each in a part of the picture of its own. Where a set has
    opaque and transparent ones, they take turns.
    """
    entry, many = tree.entry, tree.objects > 1
    stem = tree.stem.format(i=i + 1, hash=f"{rng.integers(2**32):08x}")
    picture = f"{stem}{tree.image_extension}"
    height, width = sides(rng, size)
    image, _ = background(rng, height, tree.objects * width, held_out=tree.held_out)
    written = []
    for k in range(tree.objects):
        is_transparent = bool((i + k) % 2 if entry.is_trans is None else entry.is_trans)
        kind = str(rng.choice(_TRANSPARENT if is_transparent else _OPAQUE))
        colour, cover = foreground(rng, kind, height, width, textures(tree.held_out))
        part = np.s_[:, k * width : (k + 1) * width]
        image[part] += (colour - image[part]) * cover[..., None]
        alpha = np.zeros(image.shape[:2], np.float32)
        alpha[part] = cover
        name = f"{stem}_{k}.png" if many else f"{stem}.png"
        write_image(folder / entry.alpha / name, alpha)
        if entry.trimap:
            eight_bit = np.round(alpha * 255).astype(np.uint8)  # [0, 1] -> [0, 255]
            write_image(folder / entry.trimap / name, trimap(eight_bit, margin=3))
        if entry.fg and entry.fg != entry.image:
            extension = tree.fg_extensions[i % len(tree.fg_extensions)]
            write_image(folder / entry.fg / f"{stem}{extension}", colour)
        side = ("left", "right")[k]
        written.append(_Alpha(picture, name, kind, is_transparent, side))
    if entry.image:
        write_image(folder / entry.image / picture, image)
    return written


def _coco_labels(alphas: Sequence[_Alpha]) -> list[dict[str, str]]:
    return [
        {"image_path": f"{_COCO.image}/{a.image}", "alpha_path": f"{_COCO.alpha}/{a.name}"}
        for a in alphas
    ]


def _refmatte_rw_labels(alphas: Sequence[_Alpha]) -> dict[str, dict[str, Any]]:
    return {
        Path(a.name).stem: {
            "image_name": a.image,
            "expressions": [f"the {a.kind}", f"the {a.kind} on the {a.side}"],
        }
        for a in alphas
    }


def _write_backgrounds(root: Path, num: int, size: int, seed: int) -> None:
    """Writes both parts of BG-20K."""
    for part in ("train", "testval"):
        folder = f"{BACKGROUNDS}/{part}"
        for i in range(num):
            rng = np.random.default_rng([seed, zlib.crc32(folder.encode()), i])
            name = f"h_{rng.integers(2**32):08x}.jpg"
            image, _ = background(rng, *sides(rng, size), held_out=False)
            write_image(root / folder / name, image)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
