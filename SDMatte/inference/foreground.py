"""Foreground colors: at a soft edge, pixels mix the colors of the object and the background."""

import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from SDMatte.errors import DependencyError
from SDMatte.runtime.numba_cache import load_compiled

_MARGIN = 8
_OPAQUE = 1 - 0.5 / 255
_ITERATIONS = 4  # on large levels, default 2: a tenth less error for a seventh more time

_MODULE = "pymatting.foreground.estimate_foreground_ml"
_lock = threading.Lock()


def estimate_foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Estimate the colors of an object without its background.

    Uses the fast multi-level method of Germer et al., 2020 (pymatting). The very first call
    compiles it, which takes some seconds.

    Args:
        image: uint8 ``[H, W, 3]``.
        alpha: float32 ``[H, W]`` in [0, 1].

    Returns:
        uint8 ``[H, W, 3]``: the image's colors where alpha is 1; estimated ones elsewhere, up to 8
        pixels around the object, so that a resized cutout has no dark seams; black beyond.

    Raises:
        DependencyError: pymatting is not installed.
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
    with _lock:  # neither the import nor numba's thread pool is thread-safe
        colors = _load_estimator()(
            _pad_to_two(image) / np.float32(255),  # [0, 255] -> [0, 1]
            _pad_to_two(alpha),
            n_big_iterations=_ITERATIONS,
        )
    colors = colors[: alpha.shape[0], : alpha.shape[1]]
    estimated = np.round(colors * 255).astype(np.uint8)  # [0, 1] -> [0, 255]
    result[part] = np.where(opaque, image, estimated)
    return result


def _pad_to_two(array: np.ndarray) -> np.ndarray:
    """Repeat a single row or column: the estimator has no levels for a single pixel."""
    missing = [(0, int(n < 2)) for n in array.shape[:2]]
    return np.pad(array, [*missing, *[(0, 0)] * (array.ndim - 2)], mode="edge")


def _load_estimator() -> Callable[..., np.ndarray]:
    """Import the estimator's module without its package.

    Importing pymatting compiles all its solvers, 45 seconds the first time.
    """
    if _MODULE not in sys.modules:
        package = importlib.util.find_spec("pymatting")
        if package is None or not package.submodule_search_locations:
            raise DependencyError(
                "pymatting, which estimates foreground colors, is not installed: run "
                "`bash script/setup.sh` or `pip install pymatting`."
            )
        path = Path(package.submodule_search_locations[0], *_MODULE.split(".")[1:])
        spec = importlib.util.spec_from_file_location(_MODULE, path.with_suffix(".py"))
        assert spec is not None and spec.loader is not None  # a .py file has a loader
        module, loader = importlib.util.module_from_spec(spec), spec.loader
        sys.modules[_MODULE] = module  # numba looks it up there
        try:
            load_compiled(lambda: loader.exec_module(module))
        except BaseException:
            del sys.modules[_MODULE]
            raise
    return sys.modules[_MODULE].estimate_foreground_ml
