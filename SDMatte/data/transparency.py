"""Classify an object as transparent or opaque from its alpha."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from SDMatte.errors import DataError
from SDMatte.images.io import read_alpha
from SDMatte.prompts.maps import ellipse
from SDMatte.runtime.parallel import map_in_processes

THRESHOLD = 0.25
"""An object is transparent if more than this fraction of its interior is partly transparent."""

SIDE = 256
"""Longer side in pixels to which an alpha is downsampled before it is measured."""

_INTERIOR = 17
_PARTLY = (0.05, 0.95)


def transparent_fraction(alpha: np.ndarray) -> float:
    """Return the fraction of an object's interior that is partly transparent (0.05 < alpha < 0.95).

    The alpha is downsampled to at most 256 pixels per side. The interior is the region where
    alpha > 0.05, eroded by an ellipse of 17 pixels, which removes the soft edges of hair, fur and
    motion blur.

    Args:
        alpha: float32 ``[H, W]`` in [0, 1].

    Returns:
        The fraction in [0, 1]; 0 for an object without an interior.
    """
    scale = min(1.0, SIDE / max(alpha.shape))
    height, width = (max(1, round(side * scale)) for side in alpha.shape)
    small = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA)
    low, high = _PARTLY
    interior = cv2.erode((small > low).astype(np.uint8), ellipse(_INTERIOR)) > 0
    return float((small[interior] < high).mean()) if interior.any() else 0.0


def is_transparent_alpha(alpha: np.ndarray) -> bool:
    """Return whether the object of an alpha, float32 ``[H, W]`` in [0, 1], is transparent."""
    return transparent_fraction(alpha) > THRESHOLD


def transparent_fractions(
    paths: Sequence[str | Path], num_workers: int | None = None
) -> Iterator[float | DataError]:
    """Yield the `transparent_fraction` of each alpha file, or the error of an unreadable one."""
    return map_in_processes(_fraction_of_file, paths, num_workers)


def _fraction_of_file(path: str | Path) -> float | DataError:
    try:
        return transparent_fraction(read_alpha(path))
    except DataError as error:
        return error
