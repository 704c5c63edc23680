"""Miniature data roots: drawn images with the folder and file names of the known sets.

Run as a script, ``python tests/layouts.py ROOT [NAME ...]`` writes them outside of pytest.
"""

import argparse
import json
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS
from SDMatte.data.listing import BACKGROUNDS, Entry
from SDMatte.images.io import write_image
from SDMatte.samples.photos import background, textures
from SDMatte.samples.registry import foreground
from SDMatte.samples.sample_set import sides, trimap

LAYOUTS = tuple(dict.fromkeys((*TRAIN_SETS, *TEST_SETS, BACKGROUNDS)))
_OPAQUE = ("hair", "solid", "fur", "figure", "leaves")
_TRANSPARENT = ("glass", "veil", "smoke")


@dataclass(frozen=True)
class _Tree:
    """One part of a set; file stems are built from ``i``, the image's number, and ``hash``."""

    name: str
    entry: Entry
    stem: str
    held_out: bool = False
    image_extension: str = ".jpg"
    fg_extensions: tuple[str, ...] = (".png",)  # in turn
    objects: int = 1  # per image; if several, their number ends the alphas' names


@dataclass(frozen=True)
class _Alpha:
    image: str
    name: str
    kind: str
    is_transparent: bool
    side: str


_COCO = replace(TRAIN_SETS["COCO-Matting"], image="train2017", alpha="alpha", trimap="trimap")
_P3M_TEST = replace(TEST_SETS["P3M-500-NP"], trimap="trimap")  # published, but not used
_TREES = (
    _Tree(
        "Composition-1K",
        TRAIN_SETS["Composition-1K"],
        "{i}-12{hash}dfXY",
        fg_extensions=(".png", ".jpg"),
    ),
    _Tree("DIS-646", TRAIN_SETS["DIS-646"], "{i}"),
    _Tree("AM-2K", TRAIN_SETS["AM-2K"], "m_{hash}"),
    _Tree("UHRSD", TRAIN_SETS["UHRSD"], "{hash}_{i}"),  # its test part is one of these folders
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
)


def make_layouts(root, names=LAYOUTS, num=3, size=128, seed=0):
    """Write `num` images per folder for each named set to a new or empty folder; return it.

    A name stands for both parts of a set; composited sets come with backgrounds. Sets with two
    objects per image have two alphas for each. The files of a set do not depend on the others.
    """
    root = Path(root).resolve()
    if unknown := set(names) - set(LAYOUTS):
        raise SystemExit(f"unknown data sets: {', '.join(sorted(unknown))}")
    if root.exists() and any(root.iterdir()):
        raise SystemExit(f"{root} is not empty")
    trees = [tree for tree in _TREES if tree.name in names]
    for tree in trees:
        _write_tree(root, tree, num, size, seed)
    if BACKGROUNDS in names or any(tree.entry.composites for tree in trees):
        for folder in (f"{BACKGROUNDS}/train", f"{BACKGROUNDS}/testval"):
            for i in range(num):
                rng = _generator(seed, folder, i)
                name = f"h_{rng.integers(2**32):08x}.jpg"
                image, _ = background(rng, *sides(rng, size), held_out=False)
                write_image(root / folder / name, image)
    return root


def _generator(seed, folder, i):
    return np.random.default_rng([seed, zlib.crc32(folder.encode()), i])


def _write_tree(root, tree, num, size, seed):
    """Write one part of a set, its label file, and its list of transparent samples."""
    folders = tree.entry.folder
    alphas = []
    for folder in (folders,) if isinstance(folders, str) else folders:
        for i in range(num):
            alphas += _write_image(root / folder, tree, i, size, _generator(seed, folder, i))
        if tree.name == "COCO-Matting":
            _write_json(root / folder / "COCO_Matte.json", _coco_labels(alphas))
        elif tree.name == "RefMatte-RW-100":
            _write_json(root / folder / "refmatte_rw100_label.json", _refmatte_rw_labels(alphas))
    if tree.entry.is_trans is None:
        path = root / "txt" / f"{tree.name}_transparent_samples.txt"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:  # both parts of a set share one list
            file.writelines(f"{alpha.name}\n" for alpha in alphas if alpha.is_transparent)


def _write_image(folder, tree, i, size, rng):
    """Write an image with the foreground, alpha and trimap of each object that the set has.

    Several objects are placed side by side. In sets with opaque and transparent objects, the two
    alternate.
    """
    entry = tree.entry
    stem = tree.stem.format(i=i + 1, hash=f"{rng.integers(2**32):08x}")
    image_name = f"{stem}{tree.image_extension}"
    height, width = sides(rng, size)
    image, _ = background(rng, height, tree.objects * width, held_out=tree.held_out)
    written = []
    for k in range(tree.objects):
        is_transparent = bool((i + k) % 2 if entry.is_trans is None else entry.is_trans)
        kind = str(rng.choice(_TRANSPARENT if is_transparent else _OPAQUE))
        color, cover = foreground(rng, kind, height, width, textures(tree.held_out))
        part = np.s_[:, k * width : (k + 1) * width]
        image[part] += (color - image[part]) * cover[..., None]
        alpha = np.zeros(image.shape[:2], np.float32)
        alpha[part] = cover
        name = f"{stem}_{k}.png" if tree.objects > 1 else f"{stem}.png"
        write_image(folder / entry.alpha / name, alpha)
        if entry.trimap:
            eight_bit = np.round(alpha * 255).astype(np.uint8)  # [0, 1] -> [0, 255]
            write_image(folder / entry.trimap / name, trimap(eight_bit, margin=3))
        if entry.fg and entry.fg != entry.image:
            extension = tree.fg_extensions[i % len(tree.fg_extensions)]
            write_image(folder / entry.fg / f"{stem}{extension}", color)
        written.append(_Alpha(image_name, name, kind, is_transparent, ("left", "right")[k]))
    if entry.image:
        write_image(folder / entry.image / image_name, image)
    return written


def _coco_labels(alphas):
    return [
        {"image_path": f"{_COCO.image}/{a.image}", "alpha_path": f"{_COCO.alpha}/{a.name}"}
        for a in alphas
    ]


def _refmatte_rw_labels(alphas):
    return {
        Path(a.name).stem: {
            "image_name": a.image,
            "expressions": [f"the {a.kind}", f"the {a.kind} on the {a.side}"],
        }
        for a in alphas
    }


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="new or empty folder")
    parser.add_argument("names", nargs="*", help="data sets (default: all)")
    parser.add_argument("--num", type=int, default=3, help="images per folder (default: 3)")
    parser.add_argument("--size", type=int, default=128, help="approximate side length in pixels")
    args = parser.parse_args()
    make_layouts(args.root, args.names or LAYOUTS, args.num, args.size)
