"""Align the edges of an upscaled matte with those of the image, by the fast guided filter.

K. He, J. Sun, "Fast Guided Filter", 2015: around each pixel, the matte is fitted as a linear
function of the colors at low resolution. The functions are then applied to the image at full
resolution.
"""

import cv2
import numpy as np

from SDMatte.images.guided import fit_colors

_EPSILON = 1e-4  # variance of colors in [0, 1] that counts as flat
_RADIUS = 2.0  # of the windows, in pixels of the coarse matte
_WORK_SIDE = 4  # the functions are fitted at up to this many times the coarse size
_CHUNK_ROWS = 512
_BAND = 0.02  # alpha this close to 0 or 1 is certain


def refine_with_guide(image: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Refine the uncertain parts of a matte.

    Args:
        image: uint8 ``[H, W, 3]``.
        coarse: Matte at the model's resolution, float32 ``[h, w]`` in [0, 1].

    Returns:
        float32 ``[H, W]`` in [0, 1].
    """
    height, width = image.shape[:2]
    result = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    scale = min(1.0, _WORK_SIDE * max(coarse.shape) / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    guide = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    matte = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    radius = max(1, round(_RADIUS * max(size) / max(coarse.shape)))
    linear = fit_colors(guide, matte, radius, _EPSILON)
    uncertain = (matte > _BAND) & (matte < 1 - _BAND)
    side = 2 * radius + 1
    near = cv2.dilate(uncertain.astype(np.float32), np.ones((side, side), np.uint8))
    near = cv2.blur(near, (side, side))
    maps = np.dstack([linear, near])
    for top in range(0, height, _CHUNK_ROWS):
        rows = slice(top, min(height, top + _CHUNK_ROWS))
        *slopes, offset, weight = cv2.split(_resize_rows(maps, rows, height, width))
        refined = offset
        for channel, slope in enumerate(slopes):
            refined += slope * (image[rows, :, channel] * np.float32(1 / 255))
        np.clip(refined, 0, 1, out=refined)
        result[rows] += weight * (refined - result[rows])
    return np.clip(result, 0, 1, out=result)


def _resize_rows(maps: np.ndarray, rows: slice, height: int, width: int) -> np.ndarray:
    """Resize maps ``[h, w, C]`` to a height and width, computing only the given rows."""
    scale_y, scale_x = maps.shape[0] / height, maps.shape[1] / width
    matrix = np.array(
        [
            [scale_x, 0, scale_x / 2 - 0.5],
            [0, scale_y, (rows.start + 0.5) * scale_y - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (width, rows.stop - rows.start)
    parts = [
        cv2.warpAffine(part, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for part in (maps[..., :4], np.ascontiguousarray(maps[..., 4]))
    ]
    return np.dstack(parts)
