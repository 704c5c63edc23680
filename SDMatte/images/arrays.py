"""Images as users hand them over, as one kind of array."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from SDMatte.errors import DataError
from SDMatte.images.io import (
    alpha_channel,
    pillow_to_rgb,
    read_image,
    read_image_and_alpha,
    without_premultiplied_gray,
)

logger = logging.getLogger(__name__)

GROUND = (128, 128, 128)
"""What the model sees instead of what is transparent: as far from white objects as from black
ones, so that neither loses its outline; and the 0 of its input range."""

PAPER = (255, 255, 255)
"""What shows through a transparent background of a composite, as in browsers and on paper."""

_ALLOWED = (
    "an image is a path, a Pillow image, a numpy array [H, W, 3] or a tensor [3, H, W], RGB, "
    "uint8 or floating point in [0, 1]; gray or with alpha, 1, 2 or 4 channels"
)


def read_pixels(image: Any, ignore_alpha: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Bring an image to 8-bit RGB and its alpha.

    Args:
        image: A path (EXIF rotation is applied); a Pillow image of any mode as it stands (of its
            own size, not rotated); an array ``[H, W, C]`` or ``[H, W]``; or a tensor ``[C, H, W]``
            on any device. Arrays and tensors are gray, gray with alpha, RGB or RGBA, not
            premultiplied, uint8 or floating point in [0, 1].
        ignore_alpha: Take the colors as they are stored, and the image as opaque.

    Returns:
        uint8 ``[H, W, 3]``, `GROUND` where the image is transparent all through, so that hidden
        colors get nowhere; and alpha, float32 ``[H, W]`` in [0, 1], None where it is opaque.

    Raises:
        DataError: It is something else, or a file that cannot be read.
    """
    colors, alpha = _read(image, ignore_alpha)
    if alpha is not None:
        hidden = alpha == 0
        colors[hidden] = GROUND
        if hidden.all():
            logger.warning(
                "The image is transparent all over, and so is its matte. If its alpha channel "
                "means something else, ignore it: --ignore-alpha, in Python ignore_alpha=True."
            )
    return colors, alpha


def flatten(
    colors: np.ndarray, alpha: np.ndarray | None, ground: tuple[int, int, int] = GROUND
) -> np.ndarray:
    """Put an image on an opaque ground.

    Args:
        colors: uint8 ``[H, W, 3]``.
        alpha: float32 ``[H, W]`` in [0, 1]; None: opaque, and ``colors`` come back.
        ground: Its color.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    if alpha is None:
        return colors
    over = Image.fromarray(colors)
    mask = Image.fromarray(np.rint(alpha * np.float32(255)).astype(np.uint8))  # -> [0, 255]
    return np.array(Image.composite(over, Image.new("RGB", over.size, ground), mask))


def as_rgb(image: Any) -> np.ndarray:
    """Bring an image to 8-bit RGB; what is transparent shows `PAPER`.

    Args:
        image: See `read_pixels`.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        DataError: It is something else, or a file that cannot be read.
    """
    return flatten(*read_pixels(image), PAPER)


def _read(image: Any, ignore_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Read colors as they are stored, and alpha, which is None where the image is opaque."""
    if isinstance(image, str | Path):
        return (read_image(image), None) if ignore_alpha else read_image_and_alpha(image)
    if isinstance(image, Image.Image):
        if not (image.width and image.height):
            raise DataError("The image is empty.")
        image = without_premultiplied_gray(image)
        return pillow_to_rgb(image), None if ignore_alpha else alpha_channel(image)
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
    channels = image.shape[2]
    has_alpha = channels in (2, 4)
    colors = image[..., : channels - has_alpha]
    if colors.shape[2] == 1:
        colors = np.repeat(colors, 3, axis=2)  # [H, W, 1] -> [H, W, 3]
    # A copy: the caller may go on to draw on it.
    colors = np.array(_to_8_bits(colors), order="C")
    alpha = _to_unit(image[..., -1]) if has_alpha and not ignore_alpha else None
    return colors, None if alpha is None or alpha.min() == 1 else alpha


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    return np.round(_checked(values) * np.float32(255)).astype(np.uint8)  # [0, 1] -> [0, 255]


def _to_unit(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values / np.float32(255)  # [0, 255] -> [0, 1]
    return _checked(values).astype(np.float32)


def _checked(values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"The image holds {values.dtype} values; {_ALLOWED}.")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also where one of them is NaN
        raise DataError(f"The image's values go from {low:g} to {high:g}; {_ALLOWED}.")
    return values


def read_background(background: Any) -> tuple[int, int, int] | np.ndarray:
    """Reads what a composite is to have behind its object.

    Args:
        background: A colour, as three numbers from 0 to 255 or as CSS writes it (``"white"``,
            ``"#00b140"``); or a picture, see `as_rgb`.

    Returns:
        The colour, RGB from 0 to 255; or the picture, uint8 ``[H, W, 3]``.

    Raises:
        DataError: It is neither.
    """
    colour = _colour(background)
    return as_rgb(background) if colour is None else colour


def as_background(background: Any, hw: tuple[int, int]) -> np.ndarray:
    """Makes the background of a composite.

    Args:
        background: See `read_background`; a picture is resized to cover all and cut at its middle.
        hw: Height and width of the composite.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        DataError: It is neither.
    """
    behind = read_background(background)
    if isinstance(behind, tuple):
        return np.broadcast_to(np.array(behind, np.uint8), (*hw, 3))
    picture = Image.fromarray(behind)
    height, width = hw
    scale = max(width / picture.width, height / picture.height)
    part_width, part_height = width / scale, height / scale
    left, top = (picture.width - part_width) / 2, (picture.height - part_height) / 2
    box = (left, top, left + part_width, top + part_height)
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))


def _colour(background: Any) -> tuple[int, int, int] | None:
    if isinstance(background, str) and not os.path.exists(background):
        try:
            return ImageColor.getcolor(background, "RGB")
        except ValueError as error:
            raise DataError(
                f"The background {background!r:.80} is neither a file nor a colour such as white "
                f"or #00b140."
            ) from error
    if isinstance(background, tuple | list):
        values = list(background)
        if len(values) != 3 or not all(
            isinstance(v, int | np.integer) and 0 <= v <= 255 for v in values
        ):
            raise DataError(
                f"The background {background!r} is no colour: three whole numbers from 0 to 255."
            )
        return tuple(int(v) for v in values)
    return None


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor, without an import of torch."""
    # Who has a tensor has imported torch; for the rest its import would take seconds.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
