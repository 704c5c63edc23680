"""Pictures as users hand them over, as one kind of array."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from SDMatte.errors import DataError
from SDMatte.image_io import pillow_to_rgb, read_image

_ALLOWED = (
    "a picture is a path, a Pillow image, a numpy array [H, W, 3] or a tensor [3, H, W], RGB, "
    "uint8 or floating point in [0, 1]"
)


def as_rgb(image: Any) -> np.ndarray:
    """Brings a picture to 8-bit RGB.

    Args:
        image: A path (EXIF rotation is applied); a Pillow image as it stands (of its own size,
            not rotated); an array ``[H, W, 3]``, ``[H, W, 4]`` (alpha is dropped) or ``[H, W]``;
            or a tensor ``[3, H, W]`` on any device. Arrays and tensors are RGB, uint8 or floating
            point in [0, 1].

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        DataError: It is something else, or a file that cannot be read.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        if not (image.width and image.height):
            raise DataError("The picture is empty.")
        return pillow_to_rgb(image)
    if _is_tensor(image):
        if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
            raise DataError(f"The picture is a tensor {list(image.shape)}; {_ALLOWED}.")
        image = image.detach().movedim(0, -1).cpu()  # [3, H, W] -> [H, W, 3]
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        raise DataError(f"The picture is a {type(image).__name__}; {_ALLOWED}.")
    if image.ndim == 2:
        image = image[..., None]  # [H, W] -> [H, W, 1]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        raise DataError(f"The picture is an array {list(image.shape)}; {_ALLOWED}.")
    colours = image[..., :3]
    if colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)  # [H, W, 1] -> [H, W, 3]
    return np.array(_to_8_bits(colours), order="C")  # a copy: the caller may go on to draw on it


def _is_tensor(value: Any) -> bool:
    # Who has a tensor has imported torch; for the rest its import would take seconds.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"The picture holds {values.dtype} values; {_ALLOWED}.")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also where one of them is NaN
        raise DataError(f"The picture's values go from {low:g} to {high:g}; {_ALLOWED}.")
    return np.round(values * np.float32(255)).astype(np.uint8)  # [0, 1] -> [0, 255]


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
