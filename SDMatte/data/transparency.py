"""Which objects are transparent: by a list of file names, else by a rule on the alpha."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from SDMatte.data.parallel import map_in_processes
from SDMatte.errors import DataError
from SDMatte.images.io import read_alpha
from SDMatte.runtime.files import stem_key

REPOSITORY_LISTS = Path(__file__).resolve().parents[2] / "data" / "txt"
"""Where lists may lie beside the data root, whose own win; the repository comes without any."""

THRESHOLD = 0.25
"""An object is transparent if more than this share of its interior is partly transparent."""

SIDE = 256
"""Longer sides of an alpha are averaged down to so many pixels before its share is measured."""

_INTERIOR = 17
_PARTLY = (0.05, 0.95)


def read_transparent_list(dataset: str, root: Path) -> frozenset[str] | None:
    """Reads ``txt/<dataset>_transparent_samples.txt``: one file name of a sample a line.

    Args:
        dataset: Name of the data set.
        root: The data root; ``data/txt`` of the repository is the second place.

    Returns:
        The stems of the transparent samples (`SDMatte.runtime.files.stem_key`), or None if there
        is no list.

    Raises:
        DataError: There is a list, but it cannot be read.
    """
    name = f"{dataset}_transparent_samples.txt"
    for path in (root / "txt" / name, REPOSITORY_LISTS / name):
        if os.path.isfile(path):
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"Cannot read {path}: it must be a text in UTF-8.") from error
            return frozenset(stem_key(line.strip()) for line in lines if line.strip())
    return None


def transparent_share(alpha: np.ndarray) -> float:
    """Measures how much of an object's interior is partly transparent (.05 < alpha < .95).

    The alpha is averaged down to at most 256 pixels a side. The interior is what is left of
    alpha > .05 after an erosion by an ellipse of 17 pixels, which takes away the soft edges of
    hair, fur and motion blur.

    Args:
        alpha: float32 ``[H, W]`` in [0, 1].

    Returns:
        In [0, 1]; 0 for an object without interior.
    """
    scale = min(1.0, SIDE / max(alpha.shape))
    height, width = (max(1, round(side * scale)) for side in alpha.shape)
    small = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_INTERIOR, _INTERIOR))
    low, high = _PARTLY
    interior = cv2.erode((small > low).astype(np.uint8), kernel) > 0
    return float((small[interior] < high).mean()) if interior.any() else 0.0


def is_transparent_alpha(alpha: np.ndarray) -> bool:
    """Guesses from an alpha, float32 ``[H, W]`` in [0, 1], whether its object is transparent.

    It is if `transparent_share` exceeds `THRESHOLD`.
    """
    return transparent_share(alpha) > THRESHOLD


def transparent_shares(
    paths: Sequence[str | Path], num_workers: int | None = None
) -> Iterator[float | DataError]:
    """Measures the `transparent_share` of alpha files, in several processes.

    Args:
        paths: The files.
        num_workers: See `SDMatte.data.parallel.map_in_processes`.

    Yields:
        For each file in turn its share, or the error that says why it cannot be read.
    """
    yield from map_in_processes(_share_of_file, paths, num_workers)


def _share_of_file(path: str | Path) -> float | DataError:
    try:
        return transparent_share(read_alpha(path))
    except DataError as error:
        return error
