"""A second pass over tiles, for mattes finer than what the model sees of a large picture.

The first pass sees the whole picture, but small, and knows what the object is; the tiles see its
edges at full resolution, but not the whole. So only what is finer than the first pass can show is
taken from the tiles, only around uncertain edges, and only where a tile agrees with the first pass
about what lies on which side.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import cv2
import numpy as np

PredictTiles = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Sequence[np.ndarray]]
"""Takes crops of the picture, uint8 ``[h, w, 3]``, and of the matte so far, float32 ``[h, w]``;
gives the mattes of the crops, likewise."""

_MAX_STEP = 4.0
_OVERLAP = 0.25
_UNCERTAIN = (0.02, 0.98)
_STRIP = 1024
_REACH = 20  # of the filters below, in pixels of the pass before


def refine_with_tiles(
    image: np.ndarray, coarse: np.ndarray, predict: PredictTiles, tile: int, batch_size: int = 1
) -> np.ndarray:
    """Refines a matte where it is uncertain.

    Goes from the first pass's resolution to the picture's in equal steps of at most 4, so that a
    tile shows enough of the object at each. A batch of tiles and a few maps of the picture's size
    are all that is in memory.

    Args:
        image: uint8 ``[H, W, 3]``.
        coarse: The first pass's matte at the model's resolution, float32 ``[h, w]`` in [0, 1].
        predict: The model.
        tile: Side of a tile in pixels.
        batch_size: Tiles a call.

    Returns:
        float32 ``[H, W]`` in [0, 1]; the upscaled first pass where the picture is no larger than
        the model saw it.
    """
    height, width = image.shape[:2]
    pitch = max(height / coarse.shape[0], width / coarse.shape[1])
    num_steps = max(0, math.ceil(math.log(pitch, _MAX_STEP) - 1e-6)) if pitch > 1 else 0
    details: list[np.ndarray] = []
    for step in range(1, num_steps + 1):
        scale = pitch ** (step / num_steps - 1)  # the last is 1
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        smaller = step < num_steps
        level = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if smaller else image
        alpha = _assemble(coarse, details, size)
        gain = pitch ** (1 / num_steps)
        details.append(_find_details(level, alpha, gain, predict, tile, batch_size))
    return _assemble(coarse, details, (width, height))


def _assemble(coarse: np.ndarray, details: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Adds details to the first pass at some width and height: without any, it is just upscaled."""
    alpha = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    for detail in details:
        same = detail.shape == alpha.shape
        alpha += detail if same else cv2.resize(detail, size, interpolation=cv2.INTER_LINEAR)
    return np.clip(alpha, 0, 1, out=alpha)


def _find_details(image, alpha, gain, predict, tile, batch_size) -> np.ndarray:
    """Finds what the tiles add at one resolution: float32 ``[H, W]``, 0 where nothing."""
    total, weight = np.zeros_like(alpha), np.zeros_like(alpha)
    places = _uncertain_tiles(alpha, tile)
    while batch := list(islice(places, batch_size)):
        mattes = predict([image[place] for place in batch], [alpha[place] for place in batch])
        for place, matte in zip(batch, mattes, strict=True):
            window = _window(matte.shape)
            total[place] += window * matte
            weight[place] += window
    return _compare(alpha, total, weight, gain)


def _uncertain_tiles(alpha: np.ndarray, tile: int) -> Iterator[tuple[slice, slice]]:
    """Yields overlapping tiles, those in which something is uncertain."""
    for rows in _spans(alpha.shape[0], tile):
        for columns in _spans(alpha.shape[1], tile):
            if _is_uncertain(alpha[rows, columns]).any():
                yield rows, columns


def _spans(length: int, tile: int) -> list[slice]:
    """Covers an axis evenly with spans that overlap by a quarter at least."""
    if length <= tile:
        return [slice(0, length)]
    count = math.ceil((length - tile) / (tile * (1 - _OVERLAP))) + 1
    starts = np.linspace(0, length - tile, count).round().astype(int).tolist()
    return [slice(start, start + tile) for start in starts]


def _is_uncertain(alpha: np.ndarray) -> np.ndarray:
    return (alpha > _UNCERTAIN[0]) & (alpha < _UNCERTAIN[1])


def _window(shape: tuple[int, int]) -> np.ndarray:
    """Weights of a tile's pixels, from the edge of the tile rising to its middle, in (0, 1]."""
    # A product, so that the shares of two neighbours are the same in all rows: at the picture's
    # border, too.
    ramps = ((np.minimum(np.arange(n), np.arange(n)[::-1]) + 1) / ((n + 1) // 2) for n in shape)
    return np.outer(*ramps).astype(np.float32)


def _compare(alpha: np.ndarray, total: np.ndarray, weight: np.ndarray, gain: float) -> np.ndarray:
    """Takes the fine structure of the tiles, strip by strip.

    Args:
        alpha: The matte so far, float32 ``[H, W]``.
        total: Weighted sum of the tiles' mattes.
        weight: Sum of the weights, 0 where no tile is.
        gain: How much finer this pass is than the one before; what is coarser is that one's.
    """
    result = np.empty_like(alpha)
    margin = math.ceil(_REACH * gain)
    for top in range(0, len(alpha), _STRIP):
        bottom = min(top + _STRIP, len(alpha))
        strip = slice(max(0, top - margin), min(len(alpha), bottom + margin))
        before, weights = alpha[strip], weight[strip]
        seen = weights > 0
        tiles = np.where(seen, total[strip] / np.where(seen, weights, 1), before)
        change = tiles - before
        fine = change - _smooth(change, gain)
        trust = _agreement(_smooth(tiles, gain), before, 4 * gain)
        near = cv2.dilate(_is_uncertain(before).astype(np.float32), _disc(2 * gain))
        detail = _smooth(near, gain) * seen * trust * fine
        result[top:bottom] = detail[top - strip.start : bottom - strip.start]
    return result


def _agreement(tiles: np.ndarray, before: np.ndarray, sigma: float) -> np.ndarray:
    """How far the tiles explain the pass before, place by place: float32 ``[H, W]`` in [0, 1].

    Of the local regression of the pass before on the tiles, the slope, at most 1, times the
    correlation. Tiles that see another object or none explain nothing; a constant error of a tile
    does no harm.
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
