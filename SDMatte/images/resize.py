"""Resize images, alphas and trimaps, and convert arrays to tensors."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

if TYPE_CHECKING:
    import torch

_TRIMAP_LEVELS = np.digitize(np.arange(256), (64, 192)).astype(np.float32) / 2


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Window:
        """Return the window of a whole image of shape ``[H, W, ...]``."""
        return cls(0, 0, *shape[:2])

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Return this part of ``[H, W]`` or ``[H, W, C]``, as a view."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]

    def scaled(self, shape: tuple[int, ...], other: tuple[int, ...]) -> Window:
        """Return the same part of an image of height and width ``shape`` at size ``other``."""
        y, x = other[0] / shape[0], other[1] / shape[1]
        top, left = round(self.top * y), round(self.left * x)
        bottom = round((self.top + self.height) * y)
        right = round((self.left + self.width) * x)
        return Window(top, left, bottom - top, right - left)


@lru_cache(maxsize=64)
def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of an axis that cv2's INTER_LINEAR reads.

    Returns:
        int ``[2 * size]``, the two source pixels of each output pixel, interleaved; and float32
        ``[size]`` in [0, 1), the weight of the second one.
    """
    center = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    low = np.floor(center).astype(np.intp)
    pairs = np.stack([low, np.minimum(low + 1, length - 1)], axis=1)
    return pairs.ravel(), (center - low).astype(np.float32)


class BilinearGrid:
    """A bilinear resize of a window in two steps, with pixelwise work in between.

    The resize (cv2's INTER_LINEAR, without smoothing) reads at most 2 x 2 pixels per output pixel:
    one in twelve from 12 megapixels to 512 squared. Pixelwise operations, such as compositing or
    conversion to float, are needed for these pixels only::

        pick(a, b) = work(pick(a, grid.rows, grid.columns), pick(b, grid.rows, grid.columns))
        grid.combine(pick(a, b)) == resize_bilinear(window.cut(work(a, b)), size)

    Attributes:
        rows: int ``[R]``, the rows of the image that the resize reads.
        columns: int ``[Q]``, the columns.
    """

    def __init__(self, window: Window, size: int | tuple[int, int]) -> None:
        """Plan the resize of a window to a height and width, or to a square of that side."""
        self._size = size
        width, height = _width_height(size)
        self._sparse = 4 * height * width < window.height * window.width
        if self._sparse:
            rows, self._row_weight = _taps(window.height, height)
            columns, self._column_weight = _taps(window.width, width)
        else:
            rows, columns = np.arange(window.height), np.arange(window.width)
        self.rows, self.columns = rows + window.top, columns + window.left

    def combine(self, picked: np.ndarray) -> np.ndarray:
        """Finish the resize: float32 ``[R, Q(, C)]`` to ``[height, width(, C)]``."""
        if not self._sparse:
            return resize_bilinear(picked, self._size)
        extra = (1,) * (picked.ndim - 2)
        rows = picked[1::2] - picked[0::2]
        rows *= self._row_weight.reshape(-1, 1, *extra)
        rows += picked[0::2]
        result = rows[:, 1::2] - rows[:, 0::2]
        result *= self._column_weight.reshape(1, -1, *extra)
        result += rows[:, 0::2]
        return result


def pick(array: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the pixels at the intersections of rows and columns, ``[R, Q(, C)]``."""
    return array.take(rows, axis=0).take(columns, axis=1)


def unit(array: np.ndarray) -> np.ndarray:
    """Scale uint8 to float32 in [0, 1]; return floating-point arrays unchanged."""
    if array.dtype != np.uint8:
        return array
    return array.astype(np.float32) / np.float32(255)  # [0, 255] -> [0, 1]


def resize_bilinear(array: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize ``[H, W(, C)]`` to a height and width, or a square (data/README.md, step 3).

    The aspect ratio is not kept, and no smoothing is applied. The result is float32 in the same
    range, not rounded.
    """
    array = array.astype(np.float32, copy=False)
    return cv2.resize(array, _width_height(size), interpolation=cv2.INTER_LINEAR)


def aspect_shape(shape: tuple[int, ...], size: int, multiple: int) -> tuple[int, int]:
    """Return a height and width with the aspect ratio of ``shape`` and about ``size**2`` pixels.

    Both are positive multiples of ``multiple``.
    """
    ratio = math.sqrt(shape[0] / shape[1])
    height, width = (max(1, round(side / multiple)) for side in (size * ratio, size / ratio))
    return height * multiple, width * multiple


def _width_height(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def resize_trimap(trimap: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize a trimap by nearest neighbor to a height and width, or a square (step 4).

    uint8 ``[H, W]`` is rounded to the nearest of 0, 128, 255 and becomes float32 0, 0.5, 1.
    """
    small = cv2.resize(trimap, _width_height(size), interpolation=cv2.INTER_NEAREST)
    return _TRIMAP_LEVELS[small]  # [0, 255] -> {0, 0.5, 1}


def resize_alpha(pred: np.ndarray, hw: tuple[int, int], eight_bit: bool = False) -> np.ndarray:
    """Resize a predicted alpha to the size of its image.

    Args:
        pred: The model's alpha ``[h, w]``, floating point in [0, 1].
        hw: Height and width of the image.
        eight_bit: Scale to [0, 255] before resizing and truncate, as the published evaluation does.

    Returns:
        ``[H, W]``: float32 in [0, 1], or uint8 with ``eight_bit``.

    Raises:
        ValueError: ``pred`` is not a finite floating-point map.
    """
    pred = np.asarray(pred)
    if pred.ndim != 2 or not np.issubdtype(pred.dtype, np.floating):
        raise ValueError(f"A prediction must be floating [h, w], not {pred.dtype} {pred.shape}.")
    if not np.isfinite(pred).all():
        raise ValueError("A prediction has NaN or infinite values.")
    height, width = (int(n) for n in hw)
    scale = np.float32(255 if eight_bit else 1)
    pred = pred.astype(np.float32) * scale  # [0, 1] -> [0, 255] with eight_bit
    pred = cv2.resize(pred, (width, height), interpolation=cv2.INTER_LINEAR)  # -> [H, W]
    pred = np.clip(pred, 0, scale, out=pred)
    return pred.astype(np.uint8) if eight_bit else pred


def to_planes(array: np.ndarray) -> np.ndarray:
    """Copy float32 ``[H, W(, 3)]`` in [0, 1] to ``[C, H, W]`` in [-1, 1].

    This is the model's range (data/README.md, step 9).
    """
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    scaled = np.multiply(planes, np.float32(2), order="C")
    scaled -= 1  # [0, 1] -> [-1, 1]
    return scaled


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Return `to_planes` of an array as a tensor."""
    import torch  # not needed by planning and scoring, which import this module

    return torch.from_numpy(to_planes(array))
