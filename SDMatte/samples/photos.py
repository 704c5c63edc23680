"""Photographs shipped with installed packages, and backgrounds made from them.

Only files contained in the wheels are used; nothing is downloaded.
"""

import importlib.util
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from SDMatte.samples.drawing import Rng, hsv, noise, soften

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photograph:
    """A photograph found on this machine."""

    name: str  # file name without extension
    path: Path
    held_out: bool  # reserved for the test part, never used in training
    # Box of the main object, if there is one: x0, y0, x1, y1 in pixels, the last two inclusive.
    box: tuple[int, int, int, int] | None = None

    def load(self) -> np.ndarray:
        """Read the image, `[h, w, 3]` uint8 RGB, read-only."""
        return _load(self.path)


# Package, file, held out, box.
_FILES = [
    ("skimage", "data/astronaut.png", True, (20, 12, 366, 511)),
    ("skimage", "data/chelsea.png", True, (0, 0, 385, 299)),
    ("skimage", "data/coffee.png", True, (80, 16, 478, 386)),
    ("sklearn", "datasets/images/flower.jpg", True, (171, 87, 441, 358)),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", True, (18, 23, 511, 599)),
    ("skimage", "data/gravel.png", True, None),
    ("sklearn", "datasets/images/china.jpg", False, None),
    ("skimage", "data/motorcycle_left.png", False, None),
    ("skimage", "data/rocket.jpg", False, None),
    ("skimage", "data/camera.png", False, None),
    ("skimage", "data/brick.png", False, None),
    ("skimage", "data/grass.png", False, None),
    ("skimage", "data/moon.png", False, None),
    ("skimage", "data/hubble_deep_field.jpg", False, None),
    ("skimage", "data/ihc.png", False, None),
]


def real_photographs() -> list[Photograph]:
    """Return the photographs found on this machine, in a fixed order."""
    found = []
    for package, file, held_out, box in _FILES:
        path = packaged_file(package, file)
        if path is not None:
            found.append(Photograph(path.stem, path, held_out, box))
        else:
            logger.debug("%s not found in package %s.", file, package)
    return found


def packaged_file(package: str, file: str) -> Path | None:
    """Find a file of an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder, file)).is_file()), None)


@lru_cache(maxsize=32)
def _load(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    image.flags.writeable = False  # the cached array is shared
    return image


@lru_cache(maxsize=2)
def textures(held_out: bool) -> tuple[np.ndarray, ...]:
    """Return the photographs of one split, each `[h, w, 3]` uint8."""
    return tuple(p.load() for p in real_photographs() if p.held_out == held_out)


def background(rng: Rng, h: int, w: int, *, held_out: bool) -> tuple[np.ndarray, str]:
    """Make a background: an augmented crop of a photograph from the split, or a drawing.

    Returns:
        `[h, w, 3]` float32 in [0, 1], and the photograph's name or "drawn".
    """
    photos = [p for p in real_photographs() if p.held_out == held_out]
    if not photos or rng.random() < 0.15:
        return _drawn_background(rng, h, w), "drawn"
    # Prefer color scenes to gray textures.
    weights = np.array([1.0 if _is_gray(p.path) else 3.0 for p in photos])
    photo = photos[rng.choice(len(photos), p=weights / weights.sum())]
    image = photo.load()
    scale = min(image.shape[0] / h, image.shape[1] / w) * rng.uniform(0.45, 1)
    ch, cw = int(h * scale), int(w * scale)
    y, x = rng.integers(image.shape[0] - ch + 1), rng.integers(image.shape[1] - cw + 1)
    interpolation = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    crop = cv2.resize(image[y : y + ch, x : x + cw], (w, h), interpolation=interpolation)
    crop = crop.astype(np.float32) / 255
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    gray = crop.mean(-1, keepdims=True)
    if _is_gray(photo.path) and rng.random() < 0.7:
        dark = hsv(rng.random(), rng.uniform(0, 0.7), rng.uniform(0, 0.25))
        bright = hsv(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.7, 1))
        crop = dark + (bright - dark) * gray
    else:
        crop = gray + (crop - gray) * rng.uniform(0.5, 1.3)
        crop = crop * rng.uniform(0.85, 1.15, 3).astype(np.float32)
    crop = np.clip(crop, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.35:
        crop = soften(np.ascontiguousarray(crop), rng.uniform(1.5, 8))
    return np.clip(crop, 0, 1), photo.name


@lru_cache(maxsize=32)
def _is_gray(path: Path) -> bool:
    image = _load(path)
    return bool((image[..., 0] == image[..., 2]).all())


def _drawn_background(rng: Rng, h: int, w: int) -> np.ndarray:
    mix = noise(rng, h, w, rng.uniform(1, 6), int(rng.integers(1, 7)))[..., None]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    angle = rng.uniform(0, 6.3)
    ramp = (x / w * np.cos(angle) + y / h * np.sin(angle))[..., None] / 2 + 0.5
    corners = [hsv(rng.random(), rng.beta(1.2, 2.5), rng.uniform(0.1, 1)) for _ in range(3)]
    image = corners[0] * (1 - ramp) + corners[1] * ramp
    image = image + (corners[2] - image) * np.clip(mix * 2 - 0.6, 0, 1) * rng.uniform(0, 1)
    image = image + rng.normal(0, rng.uniform(0, 0.03), (h, w, 3))
    return np.clip(image, 0, 1).astype(np.float32)
