"""Refine mattes of large images beyond the model's resolution, by a second pass over tiles.

The first pass sees the whole image at low resolution and knows what the object is. Tiles show its
edges at full resolution, but without the context. So only details that the first pass cannot
resolve are taken from tiles, only around uncertain edges, and only where a tile agrees with the
first pass on what is object and what is background.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import cv2
import numpy as np

PredictTiles = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Sequence[np.ndarray]]
"""Takes crops of the image, uint8 ``[h, w, 3]``, and of the matte so far, float32 ``[h, w]``;
returns the mattes of the crops, float32 ``[h, w]``."""

_MAX_STEP = 4.0
_OVERLAP = 0.25
_UNCERTAIN = (0.02, 0.98)
_CHUNK_ROWS = 1024
_REACH = 20  # reach of the filters below, in pixels of the previous pass


def refine_with_tiles(
    image: np.ndarray, coarse: np.ndarray, predict: PredictTiles, tile: int, batch_size: int = 1
) -> np.ndarray:
    """Refine a matte where it is uncertain.

    The resolution grows from the first pass's to the image's in equal steps of at most 4, so that
    tiles show enough of the object at each. Memory holds one batch of tiles and a few maps of the
    image's size.

    Args:
        image: uint8 ``[H, W, 3]``.
        coarse: Matte of the first pass at the model's resolution, float32 ``[h, w]`` in [0, 1].
        predict: Predicts the mattes of tiles.
        tile: Side of a tile in pixels.
        batch_size: Number of tiles per call of ``predict``.

    Returns:
        float32 ``[H, W]`` in [0, 1]; the upscaled first pass if the image is not larger than the
        model's resolution.
    """
    height, width = image.shape[:2]
    ratio = max(height / coarse.shape[0], width / coarse.shape[1])
    num_steps = max(0, math.ceil(math.log(ratio, _MAX_STEP) - 1e-6))
    details: list[np.ndarray] = []
    for step in range(1, num_steps + 1):
        scale = ratio ** (step / num_steps - 1)  # the last is 1
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        is_last = step == num_steps
        level = image if is_last else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        alpha = _assemble(coarse, details, size)
        gain = ratio ** (1 / num_steps)
        details.append(_find_details(level, alpha, gain, predict, tile, batch_size))
    return _assemble(coarse, details, (width, height))


def _assemble(coarse: np.ndarray, details: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Resize the first pass and the details to a width and height, and add them."""
    alpha = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    for detail in details:
        if detail.shape != alpha.shape:
            detail = cv2.resize(detail, size, interpolation=cv2.INTER_LINEAR)
        np.add(alpha, detail, out=alpha)
    return np.clip(alpha, 0, 1, out=alpha)


def _find_details(
    image: np.ndarray,
    alpha: np.ndarray,
    gain: float,
    predict: PredictTiles,
    tile: int,
    batch_size: int,
) -> np.ndarray:
    """Return the details that tiles add at one resolution: float32 ``[H, W]``, 0 elsewhere."""
    total, weight = np.zeros_like(alpha), np.zeros_like(alpha)
    tiles = _uncertain_tiles(alpha, tile)
    while batch := list(islice(tiles, batch_size)):
        mattes = predict([image[part] for part in batch], [alpha[part] for part in batch])
        for part, matte in zip(batch, mattes, strict=True):
            window = _window(matte.shape)
            total[part] += window * matte
            weight[part] += window
    return _select_details(alpha, total, weight, gain)


def _uncertain_tiles(alpha: np.ndarray, tile: int) -> Iterator[tuple[slice, slice]]:
    """Yield the overlapping tiles that contain uncertain pixels."""
    for rows in _spans(alpha.shape[0], tile):
        for columns in _spans(alpha.shape[1], tile):
            if _is_uncertain(alpha[rows, columns]).any():
                yield rows, columns


def _spans(length: int, tile: int) -> list[slice]:
    """Cover an axis with evenly spaced spans that overlap by at least a quarter."""
    if length <= tile:
        return [slice(0, length)]
    count = math.ceil((length - tile) / (tile * (1 - _OVERLAP))) + 1
    starts = np.linspace(0, length - tile, count).round().astype(int).tolist()
    return [slice(start, start + tile) for start in starts]


def _is_uncertain(alpha: np.ndarray) -> np.ndarray:
    return (alpha > _UNCERTAIN[0]) & (alpha < _UNCERTAIN[1])


def _window(shape: tuple[int, int]) -> np.ndarray:
    """Return weights in (0, 1] that rise from the edge of a tile to its center."""
    # A product keeps the ratio of two neighbors' weights constant along their common border.
    ramps = ((np.minimum(np.arange(n), np.arange(n)[::-1]) + 1) / ((n + 1) // 2) for n in shape)
    return np.outer(*ramps).astype(np.float32)


def _select_details(
    alpha: np.ndarray, total: np.ndarray, weight: np.ndarray, gain: float
) -> np.ndarray:
    """Return the fine structure of the tiles, computed in chunks of rows to save memory.

    Args:
        alpha: The matte so far, float32 ``[H, W]``.
        total: Weighted sum of the tiles' mattes.
        weight: Sum of the weights, 0 outside of all tiles.
        gain: Ratio of this pass's resolution to the previous one's; coarser structure is left to
            the previous pass.
    """
    result = np.empty_like(alpha)
    margin = math.ceil(_REACH * gain)
    for top in range(0, len(alpha), _CHUNK_ROWS):
        bottom = min(top + _CHUNK_ROWS, len(alpha))
        rows = slice(max(0, top - margin), min(len(alpha), bottom + margin))
        before, weights = alpha[rows], weight[rows]
        seen = weights > 0
        tiles = np.where(seen, total[rows] / np.where(seen, weights, 1), before)
        change = tiles - before
        fine = change - _smooth(change, gain)
        trust = _agreement(_smooth(tiles, gain), before, 4 * gain)
        near = cv2.dilate(_is_uncertain(before).astype(np.float32), _disc(2 * gain))
        detail = _smooth(near, gain) * seen * trust * fine
        result[top:bottom] = detail[top - rows.start : bottom - rows.start]
    return result


def _agreement(tiles: np.ndarray, before: np.ndarray, sigma: float) -> np.ndarray:
    """Return how well tiles explain the previous pass locally: float32 ``[H, W]`` in [0, 1].

    This is the slope, at most 1, of the local regression of the previous pass on the tiles, times
    their correlation. It is near 0 for tiles that show another object or none. A constant offset of
    a tile has no effect.
    """
    mean_tiles, mean_before = _smooth(tiles, sigma), _smooth(before, sigma)
    variance_tiles = _smooth(np.square(tiles), sigma) - np.square(mean_tiles)
    variance_before = _smooth(np.square(before), sigma) - np.square(mean_before)
    covariance = _smooth(tiles * before, sigma) - mean_tiles * mean_before
    slope = covariance / np.maximum(variance_tiles, 1e-4)
    correlation = covariance / np.sqrt(np.maximum(variance_tiles * variance_before, 1e-8))
    return np.clip(slope, 0, 1) * np.clip(correlation, 0, 1)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), sigma)


def _disc(radius: float) -> np.ndarray:
    side = 2 * math.ceil(radius) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
