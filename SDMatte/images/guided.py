"""The guided filter, which aligns the edges of a map with those of an image.

K. He, J. Sun, X. Tang, "Guided Image Filtering", ECCV 2010. OpenCV provides it only in its
contributed modules.
"""

import cv2
import numpy as np


def guided_filter(guide: np.ndarray, source: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Filter a map so that its edges follow those of an image.

    Args:
        guide: Image ``[H, W, 3]``, floating point in [0, 1].
        source: Map ``[H, W]`` of the same type.
        radius: See `fit_colors`.
        eps: See `fit_colors`.

    Returns:
        ``[H, W]``, which may slightly exceed the range of ``source``.
    """
    maps = fit_colors(guide, source, radius, eps)
    return np.sum(maps[..., :3] * guide, axis=2) + maps[..., 3]


def fit_colors(guide: np.ndarray, source: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Fit a map by a linear function of an image's colors in each window (equations 11 to 15).

    Args:
        guide: Image ``[H, W, 3]``, floating point in [0, 1].
        source: Map ``[H, W]`` of the same type.
        radius: Windows are ``2 * radius + 1`` wide and high, mirrored at the border.
        eps: Regularization: windows whose colors have a lower variance are smoothed.

    Returns:
        ``[H, W, 4]``: the slopes of red, green and blue, and the offset, averaged over the windows
        that contain a pixel.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_source = mean(guide), mean(source)
    covariance = mean(guide * source[..., None]) - mean_guide * mean_source[..., None]
    red, green, blue = cv2.split(guide)
    pairs = mean(np.dstack([red * red, red * green, red * blue]))
    others = mean(np.dstack([green * green, green * blue, blue * blue]))
    r, g, b = cv2.split(mean_guide)
    rr, rg, rb = cv2.split(pairs - mean_guide * r[..., None])
    gg, gb, bb = cv2.split(others - np.dstack([g * g, g * b, b * b]))
    rr, gg, bb = rr + eps, gg + eps, bb + eps
    # The solution of the symmetric 3x3 system, by cofactors.
    c00, c01, c02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    c11, c12, c22 = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
    u, v, w = cv2.split(covariance)
    slopes = np.dstack(
        [c00 * u + c01 * v + c02 * w, c01 * u + c11 * v + c12 * w, c02 * u + c12 * v + c22 * w]
    )
    slopes /= (rr * c00 + rg * c01 + rb * c02)[..., None]
    offset = mean_source - (slopes * mean_guide).sum(-1)
    return mean(np.dstack([slopes, offset]))
