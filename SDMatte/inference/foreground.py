"""Estimate foreground colors, which soft edges mix with those of the background."""

import importlib
import threading
from collections.abc import Callable

import numpy as np

from SDMatte.runtime.numba_cache import load_compiled

_MARGIN = 8
_OPAQUE = 1 - 0.5 / 255

_lock = threading.Lock()


def estimate_foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Estimate the colors of an object without its background.

    Uses the fast multi-level method of Germer et al., 2020; see `SDMatte.inference.multilevel`. The
    first call compiles it, which takes several seconds.

    Args:
        image: uint8 ``[H, W, 3]``.
        alpha: float32 ``[H, W]`` in [0, 1].

    Returns:
        uint8 ``[H, W, 3]``: the image's colors where alpha is 1; estimated colors elsewhere, up to
        8 pixels around the object's box, so that resized cutouts have no dark seams; black beyond.
    """
    result = np.zeros_like(image)
    rows, columns = (np.flatnonzero(alpha.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return result
    part = tuple(slice(max(0, n[0] - _MARGIN), n[-1] + 1 + _MARGIN) for n in (rows, columns))
    image, alpha = image[part], alpha[part]
    opaque = (alpha >= _OPAQUE)[..., None]
    if opaque.all():
        result[part] = image
        return result
    colors = _load_estimator()(
        _pad_to_two(image) / np.float32(255),  # [0, 255] -> [0, 1]
        _pad_to_two(alpha),
    )
    colors = colors[: alpha.shape[0], : alpha.shape[1]]
    estimated = np.round(colors * 255).astype(np.uint8)  # [0, 1] -> [0, 255]
    result[part] = np.where(opaque, image, estimated)
    return result


def _pad_to_two(array: np.ndarray) -> np.ndarray:
    """Repeat a single row or column, since the estimator needs at least two pixels."""
    missing = [(0, int(n < 2)) for n in array.shape[:2]]
    return np.pad(array, [*missing, *[(0, 0)] * (array.ndim - 2)], mode="edge")


def _load_estimator() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Import the estimator on first use: numba takes a second, and compiling several."""
    with _lock:  # `load_compiled` temporarily changes numba's global state
        module = load_compiled(lambda: importlib.import_module("SDMatte.inference.multilevel"))
    return module.estimate
