"""Writes the sample set: what to draw, in parallel, all of it or nothing."""

import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from SDMatte.data.parallel import map_in_processes
from SDMatte.errors import DataError
from SDMatte.runtime.files import write_text
from SDMatte.samples.drawing import Rng
from SDMatte.samples.photos import background, real_photographs, textures
from SDMatte.samples.registry import foreground, kinds

logger = logging.getLogger(__name__)

VERSION = 3  # raise it whenever the same seed gives other pictures
MANIFEST = "samples.json"
_FG = "Combined_Dataset/Training_set/combined_fg"
_ALPHA = "Combined_Dataset/Training_set/combined_alpha"
_BG = "BG-20K/train"
_TEST = "AIM-500"
_TEST_FOLDERS = ("original", "mask", "trimap")
_LISTS = {
    "train": "txt/Composition-1K_transparent_samples.txt",
    "test": "txt/AIM-500_transparent_samples.txt",
}
_PARTS = ("train", "background", "test")


@dataclass(frozen=True)
class SampleSet:
    """A sample set on disk.

    Attributes:
        root: its folder, to be used as `data_root`.
        samples: "train" and "test", each with one entry a sample by the alpha's file name
            ("0007_hair.png"): `kind`, `transparent`; in the test part also `background` (the
            photograph or "drawn"), `distractor` (its kind or None) and `held_out_kind`.
    """

    root: Path
    samples: dict[str, dict[str, dict]]


def make_sample_set(
    root: str | os.PathLike,
    *,
    num_train: int = 240,
    num_test: int = 48,
    size: int = 384,
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
) -> SampleSet:
    """Write the sample set, unless it is there already with these parameters.

    Below `root`: `Combined_Dataset/Training_set/{combined_fg,combined_alpha}` and `BG-20K/train`
    (Composition-1K's training layout), `AIM-500/{original,mask,trimap}` (the test part),
    `txt/*_transparent_samples.txt` and `samples.json`. The same parameters give the same bytes,
    whatever the number of workers. A set of other parameters is replaced, file by file: what else
    lies in the folder stays. Only one call at a time may work on a folder.

    Args:
        root: folder; new, empty, or holding a sample set.
        num_train: foregrounds for training; there is one background for every three.
        num_test: test pictures.
        size: about the length of a side, in pixels.
        seed: of all randomness.
        num_workers: processes; None takes as many as there are cores, at most 8.
        progress: show a bar on standard error.

    Returns:
        What is there now.

    Raises:
        DataError: the folder holds other things, or a number is out of range.
    """
    root = Path(root).expanduser().resolve()
    if num_train < 1 or num_test < 1 or size < 64 or seed < 0:
        raise DataError(
            "A sample set needs num_train and num_test of at least 1, size of at least 64 and "
            f"seed of at least 0, not {num_train}, {num_test}, {size} and {seed}."
        )
    counts = {"train": num_train, "background": max(2, -(-num_train // 3)), "test": num_test}
    parameters = {
        "version": VERSION,
        "num_train": num_train,
        "num_test": num_test,
        "size": size,
        "seed": seed,
        "photographs": [photo.name for photo in real_photographs()],
    }
    old = _read_manifest(root)
    if _is_complete(root, old, parameters):
        logger.info("The sample set in %s is there already; nothing to do.", root)
        return SampleSet(root, old["samples"])

    start = time.monotonic()
    draft = root.with_name(f".{root.name}.partial")  # beside it, so that a rename can put it there
    shutil.rmtree(draft, ignore_errors=True)
    try:
        manifest = _draw_all(draft, parameters, counts, num_workers, progress)
        _install(draft, root, old, manifest)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    logger.info(
        "Wrote %d training foregrounds, %d backgrounds and %d test pictures to %s in %.0f s.",
        *counts.values(),
        root,
        time.monotonic() - start,
    )
    return SampleSet(root, manifest["samples"])


def _draw_all(
    root: Path, parameters: dict, counts: dict, num_workers: int | None, progress: bool
) -> dict:
    """Write all but the manifest below `root`, a new folder; the manifest."""
    for folder in (_FG, _ALPHA, _BG, "txt", *(f"{_TEST}/{f}" for f in _TEST_FOLDERS)):
        (root / folder).mkdir(parents=True)
    tasks = [(part, i) for part in _PARTS for i in range(counts[part])]
    results = map_in_processes(
        partial(_write_one, root, parameters["size"], parameters["seed"]), tasks, num_workers
    )
    samples, files = {"train": {}, "test": {}}, {}
    for part, entry, written in tqdm(results, "sample set", len(tasks), disable=not progress):
        if entry:
            samples[part].update(entry)
        files.update(written)
    for part, path in _LISTS.items():
        names = sorted(name for name, entry in samples[part].items() if entry["transparent"])
        files.update(_write(root, path, "".join(f"{name}\n" for name in names).encode()))
    return {"parameters": parameters, "complete": True, "samples": samples, "files": files}


def _read_manifest(root: Path) -> dict | None:
    """The manifest of the set in `root`; None if the folder is new or empty."""
    if not root.exists():
        return None
    if not root.is_dir():
        raise DataError(f"{root} is a file; the sample set needs a folder.")
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        if not {"parameters", "complete", "samples", "files"} <= manifest.keys():
            raise ValueError("keys are missing")
        return manifest
    except FileNotFoundError:
        if any(root.iterdir()):
            raise DataError(
                f"{root} is not empty and holds no {MANIFEST} of a sample set; "
                "name a new or an empty folder."
            ) from None
        return None
    except (ValueError, AttributeError) as error:
        raise DataError(f"{root / MANIFEST} is not the list of a sample set ({error}).") from None


def _is_complete(root: Path, manifest: dict | None, parameters: dict) -> bool:
    if not manifest or not manifest["complete"] or manifest["parameters"] != parameters:
        return False
    for path, entry in manifest["files"].items():
        file = root / path
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            return False
    return True


def _install(new: Path, root: Path, old: dict | None, manifest: dict) -> None:
    """Put a finished set in place; a set that is being replaced is marked as incomplete."""
    text = json.dumps(manifest, indent=1)
    if old is None:
        (new / MANIFEST).write_text(text)
        if root.exists():
            root.rmdir()  # it is empty
        os.replace(new, root)
        return
    mine, coming = old["files"], manifest["files"]
    for path in coming:
        if path not in mine and (root / path).exists():
            raise DataError(f"{root / path} is in the way: the sample set did not make it.")
    write_text(
        root / MANIFEST,
        json.dumps({**old, "complete": False, "files": {**mine, **coming}}, indent=1),
    )
    for path in mine:
        (root / path).unlink(missing_ok=True)
    for path in coming:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / path, root / path)
    write_text(root / MANIFEST, json.dumps(manifest, indent=1))


def _write_one(root: Path, size: int, seed: int, task: tuple[str, int]) -> tuple[str, dict, dict]:
    """Draw and write one item; its part, its entry by name, and its files."""
    part, index = task
    rng = np.random.default_rng([seed, _PARTS.index(part), index])
    if part == "background":
        h, w = sides(rng, size * 1.1)
        image, _ = background(rng, h, w, held_out=False)
        return part, {}, _write(root, f"{_BG}/{index:04d}.jpg", _jpeg(image, 92))
    if part == "train":
        kind = _schedule(seed, part, False, index)
        h, w = sides(rng, size)
        colour, alpha = foreground(rng, kind, h, w, textures(False))
        name = f"{index:04d}_{kind}"
        files = _write(root, f"{_FG}/{name}.jpg", _jpeg(colour, 92))
        files |= _write(root, f"{_ALPHA}/{name}.png", _png(_bytes(alpha)))
        entry = {"kind": kind, "transparent": kinds[kind].transparent}
        return part, {f"{name}.png": entry}, files
    image, alpha, entry = compose_test_picture(rng, size, seed, index)
    name = f"{index:04d}_{entry['kind']}"
    files = _write(root, f"{_TEST}/original/{name}.jpg", _jpeg(image, 96))
    files |= _write(root, f"{_TEST}/mask/{name}.png", _png(_bytes(alpha)))
    margin = max(3, size // 48)
    files |= _write(root, f"{_TEST}/trimap/{name}.png", _png(trimap(_bytes(alpha), margin)))
    return part, {f"{name}.png": entry}, files


def sides(rng: Rng, size: float) -> tuple[int, int]:
    """Draw height and width of a picture of about `size` pixels a side."""
    h, w = size * np.exp(rng.uniform(-0.18, 0.18, 2))
    return int(h), int(w)


def _schedule(seed: int, part: str, held_out: bool, index: int) -> str:
    """The kind of the index-th foreground, in shuffled rounds.

    A round holds every kind as often as its weight says, but in the test part every training kind
    once, so that few pictures show them all.
    """
    once = part == "test" and not held_out
    names = [
        name
        for name, kind in kinds.items()
        if kind.held_out == held_out
        for _ in range(1 if once else kind.weight)
    ]
    turn, at = divmod(index, len(names))
    order = np.random.default_rng([seed, 9, _PARTS.index(part), held_out, turn])
    return names[order.permutation(len(names))[at]]


def compose_test_picture(
    rng: Rng, size: int, seed: int, index: int
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Compose one test picture over what training never shows.

    Half of the targets are of kinds that training never shows. Two pictures in five hold a second
    object, behind or beside the target, that is not meant.

    Returns:
        The picture, [h, w, 3] float32 in [0, 1], the target's alpha, [h, w] in [0, 1], and the
        sample's entry in the manifest.
    """
    held_out = index % 2 == 0
    kind = _schedule(seed, "test", held_out, index // 2)
    h, w = sides(rng, size)
    second = rng.random() < 0.4
    spread = rng.uniform(1.3, 1.6) if second else rng.uniform(1, 1.15)
    full = int(w * spread)
    left = int(rng.integers(full - w + 1)) if not second else int(rng.choice([0, full - w]))
    image, photo = background(rng, h, full, held_out=True)
    other = None
    if second:
        other = _schedule(seed, "test", bool(rng.random() < 0.5), int(rng.integers(1000)))
        _compose(rng, image, other, full - w - left, w)
    alpha = _compose(rng, image, kind, left, w)
    entry = {
        "kind": kind,
        "transparent": kinds[kind].transparent,
        "background": photo,
        "distractor": other,
        "held_out_kind": held_out,
    }
    return image, alpha, entry


def _compose(rng: Rng, image: np.ndarray, kind: str, left: int, w: int) -> np.ndarray:
    """Lay an object over columns left ... left + w of `image`, in place; its alpha, [h, w]."""
    h, full = image.shape[:2]
    colour, part = foreground(rng, kind, h, w, textures(True))
    alpha = np.zeros((h, full), np.float32)
    alpha[:, left : left + w] = part
    region = image[:, left : left + w]
    region += (colour - region) * part[..., None]
    return alpha


def trimap(alpha: np.ndarray, margin: int) -> np.ndarray:
    """The trimap, 0, 128 or 255, of an exact alpha, both [h, w] uint8.

    Unknown is what lies within `margin` pixels of a change of alpha or of a partly covered pixel.
    """
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1,) * 2)
    sure_fg = cv2.erode((alpha == 255).astype(np.uint8), ellipse)
    sure_bg = cv2.erode((alpha == 0).astype(np.uint8), ellipse)
    return np.where(sure_fg, 255, np.where(sure_bg, 0, 128)).astype(np.uint8)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(values * 255).astype(np.uint8)  # [0, 1] -> 0 ... 255


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    bgr = np.ascontiguousarray(_bytes(image)[..., ::-1])
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", bgr, options)[1].tobytes()


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def _write(root: Path, path: str, content: bytes) -> dict:
    (root / path).write_bytes(content)
    return {path: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
