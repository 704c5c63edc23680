"""Resizing, trimaps, gray pictures and tensors: steps 3, 4, 8 and 9 of data/README.md."""

from functools import lru_cache

import cv2
import numpy as np
import torch

_TRIMAP_LEVELS = np.digitize(np.arange(256), (64, 192)).astype(np.float32) / 2


@lru_cache(maxsize=64)
def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the pixels of an axis that a bilinear resize reads, as cv2's INTER_LINEAR does.

    Returns:
        int ``[2 * size]``, the two source pixels of each output pixel in turn, and float32
        ``[size]`` in [0, 1), the share of the second.
    """
    centre = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    low = np.floor(centre).astype(np.intp)
    pairs = np.stack([low, np.minimum(low + 1, length - 1)], axis=1)
    return pairs.ravel(), (centre - low).astype(np.float32)


class BilinearGrid:
    """A bilinear resize to a square, split so that work between happens only on pixels it reads.

    The resize (cv2's INTER_LINEAR, without smoothing) reads at most 2 x 2 pixels per output
    pixel: of 12 megapixels to 512 squared a twelfth. Whatever works pixel by pixel, such as
    compositing, gives the same result on those alone::

        grid.combine(work(grid.gather(a), grid.gather(b))) == resize_bilinear(work(a, b), size)
    """

    def __init__(self, height: int, width: int, size: int) -> None:
        """Plans the resize from ``height`` x ``width`` to ``size`` x ``size``."""
        self._size = size
        self._sparse = 4 * size * size < height * width
        if self._sparse:
            self.rows, self._row_share = _taps(height, size)
            self.columns, self._column_share = _taps(width, size)
        else:
            self.rows, self.columns = np.arange(height), np.arange(width)

    def gather(self, array: np.ndarray) -> np.ndarray:
        """Picks the pixels that the resize reads.

        Args:
            array: ``[H, W]`` or ``[H, W, C]``, uint8 or float. One narrower than the grid is
                repeated sideways.

        Returns:
            float32 ``[R, Q]`` or ``[R, Q, C]``, values as they were.
        """
        columns = self.columns % array.shape[1]
        return array.take(self.rows, axis=0).take(columns, axis=1).astype(np.float32)

    def combine(self, gathered: np.ndarray) -> np.ndarray:
        """Finishes the resize: ``[R, Q(, C)]`` to float32 ``[size, size(, C)]``."""
        if not self._sparse:
            return resize_bilinear(gathered, self._size)
        extra = (1,) * (gathered.ndim - 2)
        rows = gathered[1::2] - gathered[0::2]
        rows *= self._row_share.reshape(-1, 1, *extra)
        rows += gathered[0::2]
        result = rows[:, 1::2] - rows[:, 0::2]
        result *= self._column_share.reshape(1, -1, *extra)
        result += rows[:, 0::2]
        return result


def resize_bilinear(array: np.ndarray, size: int) -> np.ndarray:
    """Squashes a picture to ``size`` squared, without smoothing (data/README.md, step 3).

    Args:
        array: ``[H, W]`` or ``[H, W, C]``, uint8 or float.
        size: Side of the result.

    Returns:
        float32 ``[size, size(, C)]`` in the same range, unrounded.
    """
    array = array.astype(np.float32, copy=False)
    return cv2.resize(array, (size, size), interpolation=cv2.INTER_LINEAR)


@lru_cache(maxsize=64)
def ellipse(size: int) -> np.ndarray:
    """cv2's elliptic structuring element of a size, uint8 ``[size, size]``."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def draw_size(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    """Draws a kernel size, both ends included."""
    return int(rng.integers(sizes[0], sizes[1] + 1))


def make_trimap(
    alpha: np.ndarray, rng: np.random.Generator, sizes: tuple[int, int] = (15, 29)
) -> np.ndarray:
    """Makes a trimap from an alpha (data/README.md, step 4).

    The two kernel sizes are drawn in the order foreground, background. "Eroded above .95" is
    the same as "above .95, eroded", which works on bits.

    Args:
        alpha: float32 ``[H, W]`` in [0, 1].
        rng: Source of the sizes.
        sizes: Smallest and largest kernel size.

    Returns:
        float32 ``[H, W]``: 0 background, .5 unknown, 1 foreground.
    """
    eps = np.float32(1e-5)
    fg, bg = (
        cv2.erode((part + eps > 0.95).astype(np.uint8), ellipse(draw_size(rng, sizes)))
        for part in (alpha, 1 - alpha)
    )
    trimap = np.full(alpha.shape, 0.5, np.float32)
    trimap[fg > 0] = 1
    trimap[bg > 0] = 0
    return trimap


def resize_trimap(trimap: np.ndarray, size: int) -> np.ndarray:
    """Squashes a given trimap by nearest neighbour (data/README.md, step 4).

    Args:
        trimap: uint8 ``[H, W]``: 0, 128, 255; a value between belongs to the nearest of these.
        size: Side of the result.

    Returns:
        float32 ``[size, size]``: 0, .5, 1.
    """
    small = cv2.resize(trimap, (size, size), interpolation=cv2.INTER_NEAREST)
    return _TRIMAP_LEVELS[small]  # [0, 255] -> {0, .5, 1}


def to_gray(image: np.ndarray) -> np.ndarray:
    """Takes the colours out of a picture, float32 ``[H, W, 3]`` (data/README.md, step 8)."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.repeat(gray[..., None], 3, axis=2)  # [H, W] -> [H, W, 3]


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Makes the tensor that the model takes (data/README.md, step 9).

    Args:
        array: float32 ``[H, W]`` or ``[H, W, 3]`` in [0, 1].

    Returns:
        float32 ``[1, H, W]`` or ``[3, H, W]`` in [-1, 1].
    """
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    # A tensor of its own: it crosses from a worker's memory, and is written to by nobody else.
    return torch.from_numpy(np.ascontiguousarray(planes * np.float32(2) - 1))  # [0, 1] -> [-1, 1]
