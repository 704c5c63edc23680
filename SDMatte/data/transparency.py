"""Which objects are transparent: by a list of file names, else by a rule on the alpha."""

from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from SDMatte.errors import DataError

REPOSITORY_LISTS = Path(__file__).resolve().parents[2] / "data" / "txt"
"""The lists that come with the repository; those under the data root win."""

_SIDE = 256
_INTERIOR = 17
_PARTLY = (0.05, 0.95)
_SHARE = 0.25


def read_transparent_list(dataset: str, root: Path) -> frozenset[str] | None:
    """Reads ``txt/<dataset>_transparent_samples.txt``: one file name of a sample a line.

    Args:
        dataset: Name of the data set.
        root: The data root; ``data/txt`` of the repository is the second place.

    Returns:
        The stems of the transparent samples, or None if there is no list.

    Raises:
        DataError: There is a list, but it cannot be read.
    """
    name = f"{dataset}_transparent_samples.txt"
    for path in (root / "txt" / name, REPOSITORY_LISTS / name):
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"Cannot read {path}: it must be a text in UTF-8.") from error
            return frozenset(
                PurePosixPath(line.strip()).stem for line in lines if line.strip(" \t#")
            )
    return None


def is_transparent_alpha(alpha: np.ndarray) -> bool:
    """Guesses from an alpha whether its object is transparent.

    The alpha is averaged down to at most 256 pixels a side. The interior is what is left of
    alpha > .05 after an erosion by an ellipse of 17 pixels, which takes away the soft edges of
    hair, fur and motion blur. The object is transparent if more than a quarter of the interior
    is partly transparent (.05 < alpha < .95). An object without interior counts as opaque.

    Args:
        alpha: float32 ``[H, W]`` in [0, 1].
    """
    scale = min(1.0, _SIDE / max(alpha.shape))
    height, width = (max(1, round(side * scale)) for side in alpha.shape)
    small = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_INTERIOR, _INTERIOR))
    low, high = _PARTLY
    interior = cv2.erode((small > low).astype(np.uint8), kernel) > 0
    return bool(interior.any() and (small[interior] < high).mean() > _SHARE)
