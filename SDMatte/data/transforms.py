"""Trimaps, gray images (data/README.md, steps 4 and 8), and augmentation beyond the paper.

Augmentation is off by default. Each kind draws a fixed number of values from its own random stream.
"""

import math

import cv2
import numpy as np
import torch

from SDMatte.data.settings import DataSettings
from SDMatte.images.resize import Window
from SDMatte.prompts.maps import Box, draw_size, ellipse

_SMALLEST_CROP = 0.5


def make_trimap(
    alpha: np.ndarray, rng: np.random.Generator, sizes: tuple[int, int] = (15, 29)
) -> np.ndarray:
    """Make a trimap from an alpha (data/README.md, step 4).

    The two kernel sizes are drawn in the order foreground, background. Thresholding before the
    erosion equals thresholding after it, and is faster.

    Args:
        alpha: float32 ``[H, W]`` in [0, 1].
        rng: Draws the sizes.
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


def crop_window(box: Box | None, shape: tuple[int, ...], rng: np.random.Generator) -> Window:
    """Draw a square crop that contains an object.

    Its side is between half and all of the image's shorter side, and at least as long as the
    object. If the object is longer than the shorter side, the crop contains as much as fits.

    Args:
        box: First and last column and row of the object, x0, y0, x1, y1; None: no object.
        shape: Height and width of the image.
        rng: Draws the side and the position.
    """
    height, width = shape[:2]
    x0, y0, x1, y1 = box or (0, 0, width - 1, height - 1)
    largest = min(height, width)
    needed = max(x1 - x0 + 1, y1 - y0 + 1) if box else 1
    smallest = min(max(needed, math.ceil(_SMALLEST_CROP * largest)), largest)
    side = int(rng.integers(smallest, largest + 1))

    def start(first: int, last: int, length: int) -> int:
        # The window either contains the object or lies within it.
        ends = sorted((first, last + 1 - side))
        low, high = np.clip(ends, 0, length - side)
        return int(rng.integers(low, high + 1))

    return Window(start(y0, y1, height), start(x0, x1, width), side, side)


def change_colors(
    image: np.ndarray, rng: np.random.Generator, settings: DataSettings
) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, in this order.

    Args:
        image: float32 ``[H, W, 3]`` in [0, 1].
        rng: Draws the four amounts.
        settings: The largest amounts.

    Returns:
        float32 ``[H, W, 3]`` in [0, 1]; the image itself if all amounts are 0.
    """
    amounts = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    brightness, contrast, saturation, hue = amounts * rng.uniform(-1, 1, 4)
    if not any(amounts):
        return image
    # Imported here because the import takes a second or more.
    from torchvision.transforms.v2 import functional

    planes = torch.from_numpy(image).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]
    if brightness:
        planes = functional.adjust_brightness(planes, 1 + brightness)
    if contrast:
        planes = functional.adjust_contrast(planes, 1 + contrast)
    if saturation:
        planes = functional.adjust_saturation(planes, 1 + saturation)
    if hue:
        planes = functional.adjust_hue(planes, hue)
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())  # [3, H, W] -> [H, W, 3]
