"""Augmentation that the paper does not have, off by default: see the second half of DataSettings.

Everything here works on the resized picture but `crop_window`, and takes its randomness from
a stream of its own, of which it always draws the same number of values.
"""

import math
from collections.abc import Mapping

import cv2
import numpy as np
import torch

from SDMatte.data.settings import DataSettings
from SDMatte.images.resize import Window

_SMALLEST_CROP = 0.5

STAGES = ("crop", "flip", "colour", "soften", "jpeg")
"""The names of the streams, in the order of their seeds."""


def crop_window(
    box: tuple[int, int, int, int] | None, shape: tuple[int, ...], rng: np.random.Generator
) -> Window:
    """Draws a square part of a picture that holds an object.

    Its side lies between half the largest square and the whole of it, and is at least that of the
    object; of an object larger than the largest square it shows as much as fits.

    Args:
        box: First and last column and row of the object, x0, y0, x1, y1; None: no object, and
            any place will do.
        shape: Height and width of the picture.
        rng: Source of side and place.
    """
    height, width = shape[:2]
    x0, y0, x1, y1 = box or (0, 0, width - 1, height - 1)
    largest = min(height, width)
    needed = max(x1 - x0 + 1, y1 - y0 + 1) if box else 1
    smallest = min(max(needed, math.ceil(_SMALLEST_CROP * largest)), largest)
    side = int(rng.integers(smallest, largest + 1))

    def start(first: int, last: int, length: int) -> int:
        # A window that holds the object, or one that the object fills.
        ends = sorted((first, last + 1 - side))
        low, high = np.clip(ends, 0, length - side)
        return int(rng.integers(low, high + 1))

    return Window(start(y0, y1, height), start(x0, x1, width), side, side)


def flips(rng: np.random.Generator, settings: DataSettings) -> bool:
    """Draws whether to flip a sample."""
    return rng.random() < settings.flip_prob


def change_look(
    image: np.ndarray, rng: Mapping[str, np.random.Generator], settings: DataSettings
) -> np.ndarray:
    """Changes the colours of a picture, blurs it and adds JPEG artifacts, in this order.

    Args:
        image: float32 ``[H, W, 3]`` in [0, 1].
        rng: The streams ``colour``, ``soften`` and ``jpeg``.
        settings: How much and how often.

    Returns:
        Likewise; the image itself if nothing is switched on.
    """
    amounts = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    brightness, contrast, saturation, hue = amounts * rng["colour"].uniform(-1, 1, 4)
    soften = rng["soften"].random() < settings.soften_prob
    sigma = rng["soften"].uniform(*settings.soften_sigma)
    compress = rng["jpeg"].random() < settings.jpeg_prob
    quality = int(rng["jpeg"].integers(settings.jpeg_quality[0], settings.jpeg_quality[1] + 1))
    if any(amounts):
        image = _change_colours(image, brightness, contrast, saturation, hue)
    if soften:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    return _through_jpeg(image, quality) if compress else image


def _change_colours(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    # A second or more, which whoever does not use it need not wait for.
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


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    eight_bit = np.rint(image[..., ::-1] * 255).astype(np.uint8)  # RGB [0, 1] -> BGR [0, 255]
    _, code = cv2.imencode(".jpg", eight_bit, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    return decoded[..., ::-1].astype(np.float32) / 255  # BGR [0, 255] -> RGB [0, 1]
