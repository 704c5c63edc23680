"""Trimaps and gray images (data/README.md, steps 4 and 8)."""

import cv2
import numpy as np

from SDMatte.prompts.maps import draw_size, ellipse


def make_trimap(
    alpha: np.ndarray, rng: np.random.Generator, sizes: tuple[int, int] = (15, 29)
) -> np.ndarray:
    """Make a trimap from an alpha (data/README.md, step 4).

    The two kernel sizes are drawn in the order foreground, background. Thresholding before the
    erosion equals thresholding after it, and is faster.

    Args:
        alpha: float32 ``[H, W]`` in [0, 1].
        rng: Source of the sizes.
        sizes: Smallest and largest kernel size.

    Returns:
        float32 ``[H, W]``: 0 background, 0.5 unknown, 1 foreground.
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


def to_gray(image: np.ndarray) -> np.ndarray:
    """Convert an RGB image, float32 ``[H, W, 3]``, to gray with three equal channels."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.repeat(gray[..., None], 3, axis=2)  # [H, W] -> [H, W, 3]
