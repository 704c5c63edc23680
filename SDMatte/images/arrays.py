"""Convert images passed in Python (paths, Pillow images, arrays, tensors) to 8-bit arrays."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps

from SDMatte.errors import DataError
from SDMatte.images.io import read_image, read_image_and_alpha
from SDMatte.images.modes import alpha_channel, to_rgb
from SDMatte.images.resize import unit

logger = logging.getLogger(__name__)

NEUTRAL = (128, 128, 128)
"""Color that replaces transparent pixels in the model's input: white and black objects both keep
their outlines on it, and it is 0 in the model's input range."""

PAPER = (255, 255, 255)
"""Color behind a transparent background of a composite, as in browsers and on paper."""

_ALLOWED = (
    "an image must be a path, a Pillow image, a numpy array [H, W, 3] or a tensor [3, H, W], RGB, "
    "uint8 or floating point in [0, 1]; gray or with alpha, 1, 2 or 4 channels"
)


def read_pixels(image: Any, ignore_alpha: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert an image to 8-bit RGB and its alpha.

    Args:
        image: A path (EXIF rotation is applied); a Pillow image of any mode (not rotated); an
            array ``[H, W, C]`` or ``[H, W]``; or a tensor ``[C, H, W]`` on any device. Arrays and
            tensors are gray, gray with alpha, RGB or RGBA, not premultiplied, uint8 or floating
            point in [0, 1].
        ignore_alpha: Treat the image as opaque, and return its colors as stored.

    Returns:
        uint8 ``[H, W, 3]``, a copy, `NEUTRAL` where alpha is 0, so that hidden colors have no
        effect; and alpha, float32 ``[H, W]`` in [0, 1], or None if the image is opaque.

    Raises:
        DataError: Its type, shape or range is not supported, or the file cannot be read.
    """
    colors, alpha = _read(image, ignore_alpha)
    if alpha is not None:
        hidden = alpha == 0
        colors[hidden] = NEUTRAL
        if hidden.all():
            logger.warning(
                "The image is fully transparent, and so is its matte. If its alpha channel means "
                "something else, use --ignore-alpha, or ignore_alpha=True in Python."
            )
    return colors, alpha


def flatten(
    colors: np.ndarray, alpha: np.ndarray | None, backdrop: tuple[int, int, int] = NEUTRAL
) -> np.ndarray:
    """Composite uint8 ``[H, W, 3]`` over a color by float32 alpha ``[H, W]`` in [0, 1].

    Without alpha, return the image itself.
    """
    if alpha is None:
        return colors
    over = Image.fromarray(colors)
    mask = Image.fromarray(np.rint(alpha * np.float32(255)).astype(np.uint8))  # -> [0, 255]
    return np.array(Image.composite(over, Image.new("RGB", over.size, backdrop), mask))


def _read(image: Any, ignore_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Read colors as stored, and alpha, which is None if the image is opaque."""
    if isinstance(image, str | Path):
        return (read_image(image), None) if ignore_alpha else read_image_and_alpha(image)
    if isinstance(image, Image.Image):
        return _read_pillow(image, ignore_alpha)
    if is_tensor(image):
        if image.ndim != 3 or not 1 <= image.shape[0] <= 4:
            raise DataError(f"The image is a tensor {list(image.shape)}; {_ALLOWED}.")
        image = image.detach().movedim(0, -1).cpu()  # [C, H, W] -> [H, W, C]
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise DataError(f"The image is a {type(image).__name__}; {_ALLOWED}.")
    if image.ndim == 2:
        image = image[..., None]  # [H, W] -> [H, W, 1]
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4 or image.size == 0:
        raise DataError(f"The image is an array {list(image.shape)}; {_ALLOWED}.")
    if image.dtype != np.uint8:
        if not np.issubdtype(image.dtype, np.floating):
            raise DataError(f"The image has {image.dtype} values; {_ALLOWED}.")
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # also if a value is NaN
            raise DataError(f"The image's values range from {low:g} to {high:g}; {_ALLOWED}.")
    channels = image.shape[2]
    has_alpha = channels in (2, 4)
    colors = image[..., : channels - has_alpha]
    if colors.dtype != np.uint8:
        colors = np.round(colors * np.float32(255)).astype(np.uint8)  # [0, 1] -> [0, 255]
    # A copy, because the caller may modify it.
    colors = np.array(np.broadcast_to(colors, (*colors.shape[:2], 3)), order="C")
    alpha = unit(image[..., -1]).astype(np.float32) if has_alpha and not ignore_alpha else None
    return colors, None if alpha is None or alpha.min() == 1 else alpha


def _read_pillow(image: Image.Image, ignore_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if not (image.width and image.height):
        raise DataError("The image is empty.")
    try:
        image = image.convert("LA") if image.mode == "La" else image
        alpha = None if ignore_alpha else alpha_channel(image)
        return np.array(to_rgb(image, "the image")), None if alpha is None else unit(alpha)
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError...
        raise DataError(f"The image cannot be decoded: {error}.") from error


def parse_color(text: str) -> tuple[int, int, int] | None:
    """Parse an opaque CSS color (``"white"``, ``"#00b140"``); None for other texts."""
    try:
        color = ImageColor.getrgb(text)
    except ValueError:
        return None
    return color[:3] if len(color) == 3 and 0 <= min(color) <= max(color) <= 255 else None


def read_background(background: Any) -> tuple[int, int, int] | np.ndarray:
    """Read the background of a composite.

    It is a color, as three integers from 0 to 255 or in CSS (``"white"``, ``"#00b140"``); or an
    image, see `read_pixels`, which is composited over `PAPER`.
    """
    if isinstance(background, str) and not os.path.exists(background):
        color = parse_color(background)
        if color is None:
            raise DataError(
                f"The background {background!r:.80} is neither a file nor a color such as white, "
                f"#00b140 or rgb(0, 177, 64)."
            )
        return color
    if not isinstance(background, tuple | list):
        return flatten(*read_pixels(background), PAPER)
    if len(background) != 3 or not all(
        isinstance(v, int | np.integer) and 0 <= v <= 255 for v in background
    ):
        raise DataError(
            f"The background {background!r} is not a color: three integers from 0 to 255."
        )
    red, green, blue = (int(v) for v in background)
    return red, green, blue


def as_background(background: Any, hw: tuple[int, int]) -> np.ndarray:
    """Return the background of a composite of height and width ``hw``, uint8 ``[H, W, 3]``.

    An image, see `read_background`, is scaled to cover the composite and cropped around its center.
    """
    behind = read_background(background)
    if isinstance(behind, tuple):
        return np.broadcast_to(np.array(behind, np.uint8), (*hw, 3))
    return np.array(ImageOps.fit(Image.fromarray(behind), hw[::-1], Image.Resampling.LANCZOS))


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor, without importing torch, which takes seconds."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
