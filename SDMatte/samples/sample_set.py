"""Choose, draw and write the embedded sample set, in parallel and all or nothing."""

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

from SDMatte.errors import DataError
from SDMatte.runtime.files import write_text
from SDMatte.runtime.parallel import map_in_processes
from SDMatte.samples.drawing import Rng
from SDMatte.samples.photos import background, real_photographs, textures
from SDMatte.samples.registry import OBJECT_KINDS, foreground

logger = logging.getLogger(__name__)

VERSION = 3  # increase whenever the same seed gives different images
MANIFEST = "samples.json"
_FG = "Combined_Dataset/Training_set/combined_fg"
_ALPHA = "Combined_Dataset/Training_set/combined_alpha"
_BG = "BG-20K/train"
_TEST = "AIM-500"
_TRANSPARENT_LISTS = {
    "train": "txt/Composition-1K_transparent_samples.txt",
    "test": "txt/AIM-500_transparent_samples.txt",
}
_PARTS = ("train", "background", "test")  # their order seeds the random generators


@dataclass(frozen=True)
class SampleSet:
    """A sample set on disk.

    Attributes:
        root: Its folder, to use as data root.
        samples: For "train" and "test", an entry per alpha file ("0007_hair.png") with
            `kind` and `transparent`; in the test part also `background` (name of the photograph or
            "drawn"), `distractor` (kind of a second object or None) and `held_out_kind`.
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
    """Write the sample set, unless it already exists with these parameters.

    The layout under `root` is that of Composition-1K's training set, BG-20K, and AIM-500 as test
    part, plus lists of the transparent samples and `samples.json`. Equal parameters give equal
    bytes, regardless of the number of workers. A set with other parameters is replaced; other
    files in the folder are kept. Concurrent calls on one folder are not supported.

    Args:
        root: A new or empty folder, or one with a sample set.
        num_train: Training foregrounds; there is one background for every three.
        num_test: Test images.
        size: Approximate side length in pixels.
        seed: Random seed.
        num_workers: Processes; by default the number of cores, at most 8.
        progress: Show a progress bar on standard error.

    Raises:
        DataError: The folder holds other files, or a number is out of range.
    """
    root = Path(root).expanduser().resolve()
    if num_train < 1 or num_test < 1 or size < 64 or seed < 0:
        raise DataError(
            "num_train and num_test must be at least 1, size at least 64 and seed at least 0; got "
            f"num_train={num_train}, num_test={num_test}, size={size}, seed={seed}."
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
    old = read_manifest(root)
    if _is_current(root, old, parameters):
        logger.info("The sample set in %s is up to date.", root)
        return SampleSet(root, old["samples"])

    changes = [
        f"{name} {old['parameters'].get(name)} (now {value})"
        for name, value in parameters.items()
        if old["files"] and old["parameters"].get(name) != value
    ]
    if changes:
        logger.info("Replacing the sample set in %s, made with %s.", root, ", ".join(changes))
    start = time.monotonic()
    draft = root.with_name(f".{root.name}.partial")  # beside root, so that files can be renamed
    shutil.rmtree(draft, ignore_errors=True)
    try:
        manifest = _draw_all(draft, parameters, counts, num_workers, progress)
        _install(draft, root, old, manifest)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    logger.info(
        "Wrote %d training foregrounds, %d backgrounds and %d test images to %s in %.0f s.",
        *counts.values(),
        root,
        time.monotonic() - start,
    )
    return SampleSet(root, manifest["samples"])


def read_manifest(root: Path) -> dict:
    """Return the manifest of the set in `root`, with no files if the folder is new or empty.

    Raises:
        DataError: The folder holds other files.
    """
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file; the sample set needs a folder.")
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        if not {"parameters", "complete", "samples", "files"} <= manifest.keys():
            raise ValueError("keys are missing")
        return manifest
    except FileNotFoundError:
        if root.exists() and any(root.iterdir()):
            raise DataError(
                f"{root} is not empty and has no {MANIFEST} of a sample set; "
                "choose a new or empty folder."
            ) from None
        return {"parameters": {}, "complete": False, "samples": {}, "files": {}}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{root / MANIFEST} does not describe a sample set: {error}.") from None


def _is_current(root: Path, manifest: dict, parameters: dict) -> bool:
    if not manifest["complete"] or manifest["parameters"] != parameters:
        return False
    files = {root / path: entry["bytes"] for path, entry in manifest["files"].items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in files.items())


def _install(draft: Path, root: Path, old: dict, manifest: dict) -> None:
    """Move a finished set to `root`; a manifest marked incomplete guards against interruption."""
    for path in manifest["files"]:
        if path not in old["files"] and (root / path).exists():
            raise DataError(f"{root / path} exists and is not part of the sample set; remove it.")
    root.mkdir(parents=True, exist_ok=True)
    unfinished = {**old, "complete": False, "files": {**old["files"], **manifest["files"]}}
    write_text(root / MANIFEST, json.dumps(unfinished, indent=1))
    for path in old["files"]:
        (root / path).unlink(missing_ok=True)
    for path in manifest["files"]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / path, root / path)
    write_text(root / MANIFEST, json.dumps(manifest, indent=1))


def _draw_all(
    draft: Path, parameters: dict, counts: dict, num_workers: int | None, progress: bool
) -> dict:
    """Write the set, except for its manifest, to a new folder; return the manifest."""
    tasks = [(part, i) for part in _PARTS for i in range(counts[part])]
    draw = partial(_draw_item, draft, parameters["size"], parameters["seed"])
    results = map_in_processes(draw, tasks, num_workers)
    samples, files = {"train": {}, "test": {}}, {}
    for part, entry, written in tqdm(results, "sample set", len(tasks), disable=not progress):
        samples.get(part, {}).update(entry)
        files.update(written)
    for part, path in _TRANSPARENT_LISTS.items():
        names = sorted(name for name, entry in samples[part].items() if entry["transparent"])
        files.update(_write(draft, path, "".join(f"{name}\n" for name in names).encode()))
    return {"parameters": parameters, "complete": True, "samples": samples, "files": files}


def _draw_item(root: Path, size: int, seed: int, task: tuple[str, int]) -> tuple[str, dict, dict]:
    """Draw and write one item; return its part, its entry by alpha name, and its files."""
    part, index = task
    rng = np.random.default_rng([seed, _PARTS.index(part), index])
    if part == "background":
        image, _ = background(rng, *sides(rng, size * 1.1), held_out=False)
        return part, {}, _write(root, f"{_BG}/{index:04d}.jpg", _jpeg(image, 92))
    if part == "train":
        kind = _kind_at(seed, part, False, index)
        color, alpha = foreground(rng, kind, *sides(rng, size), textures(False))
        entry = {"kind": kind, "transparent": OBJECT_KINDS[kind].transparent}
        name = f"{index:04d}_{kind}"
        files = _write(root, f"{_FG}/{name}.jpg", _jpeg(color, 92))
        files |= _write(root, f"{_ALPHA}/{name}.png", _png(_to_uint8(alpha)))
        return part, {f"{name}.png": entry}, files
    image, alpha, entry = compose_test_image(rng, size, seed, index)
    alpha = _to_uint8(alpha)
    name = f"{index:04d}_{entry['kind']}"
    files = _write(root, f"{_TEST}/original/{name}.jpg", _jpeg(image, 96))
    files |= _write(root, f"{_TEST}/mask/{name}.png", _png(alpha))
    files |= _write(root, f"{_TEST}/trimap/{name}.png", _png(trimap(alpha, max(3, size // 48))))
    return part, {f"{name}.png": entry}, files


def sides(rng: Rng, size: float) -> tuple[int, int]:
    """Draw the height and width of an image of about `size` pixels per side."""
    h, w = size * np.exp(rng.uniform(-0.18, 0.18, 2))
    return int(h), int(w)


def _kind_at(seed: int, part: str, held_out: bool, index: int) -> str:
    """Return the kind of the index-th object, from shuffled rounds.

    A round has each kind as often as its weight, except in the test part: there, each training
    kind appears once, so that few images cover all of them.
    """
    once = part == "test" and not held_out
    names = [
        name
        for name, kind in OBJECT_KINDS.items()
        if kind.held_out == held_out
        for _ in range(1 if once else kind.weight)
    ]
    turn, at = divmod(index, len(names))
    order = np.random.default_rng([seed, 9, _PARTS.index(part), held_out, turn])
    return names[order.permutation(len(names))[at]]


def compose_test_image(
    rng: Rng, size: int, seed: int, index: int
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Compose one test image on a held-out background.

    Half of the targets are of held-out kinds. Two of five images have a distractor, a second
    object behind or beside the target.

    Returns:
        The image, `[h, w, 3]` float32 in [0, 1]; the target's alpha, `[h, w]` in [0, 1]; and the
        sample's entry in the manifest.
    """
    held_out = index % 2 == 0
    kind = _kind_at(seed, "test", held_out, index // 2)
    h, w = sides(rng, size)
    second = rng.random() < 0.4
    full = int(w * (rng.uniform(1.3, 1.6) if second else rng.uniform(1, 1.15)))
    left = int(rng.choice([0, full - w]) if second else rng.integers(full - w + 1))
    image, photo = background(rng, h, full, held_out=True)
    distractor = None
    if second:
        distractor = _kind_at(seed, "test", bool(rng.random() < 0.5), int(rng.integers(1000)))
        _compose(rng, image, distractor, full - w - left, w)
    alpha = _compose(rng, image, kind, left, w)
    entry = {
        "kind": kind,
        "transparent": OBJECT_KINDS[kind].transparent,
        "background": photo,
        "distractor": distractor,
        "held_out_kind": held_out,
    }
    return image, alpha, entry


def _compose(rng: Rng, image: np.ndarray, kind: str, left: int, w: int) -> np.ndarray:
    """Draw an object over columns `left` to `left + w` of `image`, in place; return its alpha."""
    h, full = image.shape[:2]
    color, part = foreground(rng, kind, h, w, textures(True))
    alpha = np.zeros((h, full), np.float32)
    alpha[:, left : left + w] = part
    region = image[:, left : left + w]
    region += (color - region) * part[..., None]
    return alpha


def trimap(alpha: np.ndarray, margin: int) -> np.ndarray:
    """Return the trimap of an exact alpha, both `[h, w]` uint8; unknown is 128.

    A pixel is unknown if a partly covered pixel or an edge lies within `margin` pixels.
    """
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1,) * 2)
    sure_fg = cv2.erode((alpha == 255).astype(np.uint8), ellipse)
    sure_bg = cv2.erode((alpha == 0).astype(np.uint8), ellipse)
    return np.where(sure_fg, 255, np.where(sure_bg, 0, 128)).astype(np.uint8)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.round(values * 255).astype(np.uint8)  # [0, 1] -> [0, 255]


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    bgr = np.ascontiguousarray(_to_uint8(image)[..., ::-1])
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", bgr, options)[1].tobytes()


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def _write(root: Path, path: str, content: bytes) -> dict:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)
    return {path: {"bytes": len(content)}}
