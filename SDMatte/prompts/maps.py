"""Draw visual prompts from a true alpha: steps 5, 6 and 7 of data/README.md.

Maps are float32 ``[H, W]`` in [0, 1], coordinates float32 fractions of width (x) and height (y).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from SDMatte.prompts.types import NUM_POINTS

_OPERATIONS = (("erode",), ("dilate",), ("erode", "dilate"), ("dilate", "erode"))
_SOLID = 0.8
_DOMINANT = 10
_TRUNCATE = 4.0

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1: first and last column and row."""


class Prompt(NamedTuple):
    """A map, float32 ``[H, W]`` in [0, 1], and its coordinates, float32 ``[4]`` or ``[20]``."""

    mask: np.ndarray
    coords: np.ndarray


def full_frame() -> np.ndarray:
    """Return the coordinates 0, 0, 1, 1, which also stand for an empty box or mask."""
    return np.array([0, 0, 1, 1], np.float32)


def auto_prompt(shape: tuple[int, int]) -> Prompt:
    """Return the full-frame prompt: a map of ones and 0, 0, 1, 1."""
    return Prompt(np.ones(shape, np.float32), full_frame())


def _fractions(box: Sequence[float], shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape[:2]
    return (np.asarray(box, np.float64) / (width, height, width, height)).astype(np.float32)


# ------------------------------------------------------------------------ mask


@lru_cache(maxsize=64)
def ellipse(size: int) -> np.ndarray:
    """Return cv2's elliptic structuring element, uint8 ``[size, size]``."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def draw_size(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    """Draw a kernel size from a range, both ends included."""
    return int(rng.integers(sizes[0], sizes[1] + 1))


def extent(mask: np.ndarray) -> Box | None:
    """Return the bounding box of a mask's nonzero pixels; None if the mask is empty."""
    cols, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(cols):
        return None
    return int(cols[0]), int(rows[0]), int(cols[-1]), int(rows[-1])


def mask_prompt(
    alpha: np.ndarray,
    rng: np.random.Generator,
    sizes: tuple[int, int] = (15, 29),
    threshold: tuple[float, float] = (0.01, 1.0),
) -> Prompt:
    """Draw a coarse mask of an alpha, float32 ``[H, W]`` in [0, 1] (data/README.md, step 5).

    Draws the threshold from its range, then one of erode, dilate, open and close, then the kernel
    size of each erosion and dilation in order.
    """
    mask: np.ndarray = (alpha >= rng.uniform(*threshold)).astype(np.uint8)
    for name in _OPERATIONS[rng.integers(len(_OPERATIONS))]:
        operation = cv2.erode if name == "erode" else cv2.dilate
        mask = operation(mask, ellipse(draw_size(rng, sizes)))
    return prompt_of_mask(mask)


def prompt_of_mask(mask: np.ndarray) -> Prompt:
    """Return the prompt of a mask, ``[H, W]`` of 0 and 1 or bool; its extent is the coordinates."""
    box = extent(mask)
    coords = full_frame() if box is None else _fractions(box, mask.shape)
    return Prompt(mask.astype(np.float32), coords)


# ------------------------------------------------------------------------- box


def object_box(alpha: np.ndarray) -> Box | None:
    """Return the box of an alpha's object (data/README.md, step 6); None if the alpha is empty.

    The object is everything with alpha > 0, or only the largest 4-connected component if it has at
    least ten times the area of the second largest.
    """
    mask = (alpha > 0).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4, ltype=cv2.CV_32S)
    areas = stats[1:, cv2.CC_STAT_AREA]  # without the background
    if len(areas) > 1:
        *_, second, largest = np.sort(areas)
        if largest >= _DOMINANT * second:
            mask = labels == 1 + areas.argmax()
    return extent(mask)


def jitter_box(box: Box, shape: tuple[int, ...], rng: np.random.Generator, jitter: float) -> Box:
    """Move each side of a box outwards or inwards (data/README.md, step 6).

    Draws one c from [0, jitter], then the directions of x0, y0, x1, y1. A side moves by
    int(c · extent of the box along its axis) and stays in the image.
    """
    c = rng.uniform(0, jitter)
    directions = rng.integers(0, 2, size=4) * 2 - 1  # {0, 1} -> {-1, 1}
    x0, y0, x1, y1 = box
    step_x, step_y = int(c * (x1 - x0)), int(c * (y1 - y0))
    return clip_box(np.array(box) + directions * (step_x, step_y, step_x, step_y), shape)


def loosen_box(box: Box, shape: tuple[int, ...], rng: np.random.Generator, loosen: float) -> Box:
    """Move each side of a box outwards by a fraction of the box's extent.

    Draws a fraction for each of x0, y0, x1, y1 from [0, loosen]. A side moves by an integer number
    of pixels and stays in the image.
    """
    x0, y0, x1, y1 = box
    across, down = x1 - x0, y1 - y0
    steps = np.rint(rng.uniform(0, loosen, 4) * (across, down, across, down)).astype(int)
    return clip_box(np.array(box) + steps * (-1, -1, 1, 1), shape)


def clip_box(box: np.ndarray, shape: tuple[int, ...]) -> Box:
    """Clip the corners of a box to the pixels of an image of shape ``[H, W, ...]``."""
    height, width = shape[:2]
    x0, y0, x1, y1 = np.clip(box, 0, (width - 1, height - 1, width - 1, height - 1)).tolist()
    return x0, y0, x1, y1


def box_prompt(
    alpha: np.ndarray, rng: np.random.Generator, jitter: float = 0.0, loosen: float = 0.0
) -> Prompt:
    """Draw the box prompt of an alpha, float32 ``[H, W]`` in [0, 1] (data/README.md, step 6).

    Applies `jitter_box`, then `loosen_box`.
    """
    box = object_box(alpha)
    if box is not None:
        box = jitter_box(box, alpha.shape, rng, jitter)
        if loosen:
            box = loosen_box(box, alpha.shape, rng, loosen)
    return prompt_of_box(box, alpha.shape)


def prompt_of_box(box: Box | None, shape: tuple[int, int]) -> Prompt:
    """Return the prompt of a box: 1 from the first row and column up to, but excluding, the last.

    Without a box, the map is empty and the coordinates are 0, 0, 1, 1.
    """
    mask = np.zeros(shape, np.float32)
    if box is None:
        return Prompt(mask, full_frame())
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 1
    return Prompt(mask, _fractions(box, shape))


# ---------------------------------------------------------------------- points


@lru_cache(maxsize=8)
def _responses(length: int, sigma: float) -> tuple[np.ndarray, int]:
    """Return the filter's response to an impulse at i, with peak 1, in row i; and its radius."""
    responses = gaussian_filter1d(np.eye(length), sigma, axis=1, mode="reflect", truncate=_TRUNCATE)
    responses /= responses.max(axis=1, keepdims=True)
    return responses.astype(np.float32), int(_TRUNCATE * sigma + 0.5)


def heat_map(points: Sequence[tuple[int, int]], shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Draw points (x, y), pixels of the image, as Gaussians (data/README.md, step 7).

    The filter is truncated at 4 sigma and reflected at the border. The map, float32 ``[H, W]`` in
    [0, 1], is the maximum over the points, each of which has a peak of 1.
    """
    height, width = shape
    along_y, reach = _responses(height, sigma)
    along_x, _ = _responses(width, sigma)
    result = np.zeros(shape, np.float32)
    for x, y in points:
        rows = slice(max(0, y - reach), y + reach + 1)
        cols = slice(max(0, x - reach), x + reach + 1)
        window = result[rows, cols]
        np.maximum(window, np.outer(along_y[y, rows], along_x[x, cols]), out=window)
    return result


def disc_map(
    points: Sequence[tuple[int, int]], shape: tuple[int, int], radius: float
) -> np.ndarray:
    """Draw points as discs: float32 ``[H, W]``, 1 up to and including the radius, else 0."""
    ys, xs = np.ogrid[: shape[0], : shape[1]]
    result = np.zeros(shape, bool)
    for x, y in points:
        result |= (xs - x) ** 2 + (ys - y) ** 2 <= radius**2
    return result.astype(np.float32)


def point_prompt(
    alpha: np.ndarray, rng: np.random.Generator, radius: float = 25, psm: str = "gauss"
) -> Prompt:
    """Draw ten points where alpha, float32 ``[H, W]``, is above 0.8 (data/README.md, step 7).

    Points keep the order in which they were drawn. With fewer than ten such pixels, the map is
    empty and the coordinates are zeros. See `prompt_of_points`.
    """
    points = []
    solid = np.flatnonzero(alpha > _SOLID)
    if len(solid) >= NUM_POINTS:
        ys, xs = np.divmod(rng.choice(solid, NUM_POINTS, replace=False), alpha.shape[1])
        points = list(zip(xs.tolist(), ys.tolist(), strict=True))
    return prompt_of_points(points, alpha.shape, radius, psm)


def prompt_of_points(
    points: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    radius: float = 25,
    psm: str = "gauss",
) -> Prompt:
    """Return the prompt of up to ten points (x, y), pixels of the image; missing ones are zeros.

    ``radius`` is the sigma of Gaussians (``psm="gauss"``) or the radius of discs (``"circle"``).
    """
    height, width = shape
    coords = np.zeros(2 * NUM_POINTS, np.float32)
    if points:
        fractions = np.asarray(points) / (width, height)
        coords[: fractions.size] = fractions.ravel()
    draw = heat_map if psm == "gauss" else disc_map
    return Prompt(draw(points, shape, radius), coords)
