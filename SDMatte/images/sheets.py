"""Contact sheets: labeled images in the cells of one large image."""

from collections.abc import Iterable, Sequence
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from SDMatte.errors import ConfigError

PAGE = 232
"""Gray level of the page, distinct from a matte's black and white."""

_LABEL_HEIGHT = 18
_FONT_SIZE = 11
_MARGIN = 2


def contact_sheet(
    tiles: Iterable[np.ndarray],
    labels: Iterable[str] = (),
    columns: int = 6,
    tile: int = 192,
) -> np.ndarray:
    """Arrange images on a sheet, row by row.

    Args:
        tiles: Images of any size, see `to_rgb`. They are read one at a time, so a generator of
            large images needs memory for only one.
        labels: Texts above the images, shortened to fit; missing ones are empty. Rows without
            labels have no label line.
        columns: Images per row.
        tile: Width and height of a cell, in pixels.

    Returns:
        uint8 ``[H, columns * tile, 3]``, RGB.

    Raises:
        ConfigError: No images are given, or the sheet has no room for them.
    """
    if columns < 1 or tile < 16:
        raise ConfigError(
            f"A contact sheet needs at least 1 column and 16 pixels per tile; got {columns} "
            f"columns of {tile} pixels."
        )
    cells = [fit(image, tile) for image in tiles]
    if not cells:
        raise ConfigError("A contact sheet needs at least one image.")
    texts = [*labels, *[""] * len(cells)][: len(cells)]
    blank = np.full((tile, tile, 3), PAGE, np.uint8)
    rows = []
    for first in range(0, len(cells), columns):
        row, heads = cells[first : first + columns], texts[first : first + columns]
        if any(heads):
            rows.append(_label_line(heads, columns, tile))
        rows.append(np.hstack([*row, *[blank] * (columns - len(row))]))
    return np.vstack(rows)


def fit(image: np.ndarray, tile: int) -> np.ndarray:
    """Scale and center an image, see `to_rgb`, in a cell: uint8 ``[tile, tile, 3]``."""
    height, width = image.shape[:2]
    scale = (tile - 2 * _MARGIN) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(to_rgb(image), size, interpolation=cv2.INTER_AREA)
    cell = np.full((tile, tile, 3), PAGE, np.uint8)
    left, top = (tile - size[0]) // 2, (tile - size[1]) // 2
    cell[top : top + size[1], left : left + size[0]] = small
    return cell


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert ``[H, W]`` or ``[H, W, 3]``, uint8, bool, or float in [0, 1], to uint8 RGB."""
    if image.dtype != np.uint8:
        image = (np.clip(image, 0, 1) * np.float32(255)).round().astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def _label_line(texts: Sequence[str], columns: int, tile: int) -> np.ndarray:
    """Draw the labels of a row: uint8 ``[label height, columns * tile, 3]``."""
    line = Image.new("RGB", (columns * tile, _LABEL_HEIGHT), (PAGE,) * 3)
    draw = ImageDraw.Draw(line)
    for column, text in enumerate(texts):
        position = (column * tile + _MARGIN, _LABEL_HEIGHT - _MARGIN)
        draw.text(position, _shorten(text, tile - 2 * _MARGIN), (0, 0, 0), _font(), anchor="ld")
    return np.asarray(line)


def _shorten(text: str, width: int) -> str:
    """Shorten a text in the middle, because file names differ at their ends."""
    # File names may contain line breaks or undecodable bytes.
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if _font().getlength(text) <= width:
        return text
    half = len(text) // 2
    while half and _font().getlength(f"{text[:half]}…{text[-half:]}") > width:
        half -= 1
    return f"{text[:half]}…{text[-half:]}" if half else ""


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Pillow's default font covers only ASCII.
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", _FONT_SIZE)


def checkerboard(hw: tuple[int, ...], side: int = 16) -> np.ndarray:
    """Draw the white and light gray squares that indicate transparency: uint8 ``[H, W, 3]``."""
    ys, xs = np.indices(hw) // side
    return np.where((ys + xs) % 2, 204, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
