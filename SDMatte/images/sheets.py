"""Drawing for people: pictures fitted into cells, with labels, on one sheet.

Data, evaluation and the engine all show pictures; this is how they look.
"""

from collections.abc import Iterable, Sequence
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from SDMatte.errors import ConfigError

PAGE = 232
"""Gray of the paper, neither the black nor the white of a matte."""

_LABEL_HEIGHT = 18
_FONT_SIZE = 11
_MARGIN = 2


def contact_sheet(
    tiles: Iterable[np.ndarray],
    labels: Iterable[str] = (),
    columns: int = 6,
    tile: int = 192,
) -> np.ndarray:
    """Puts pictures on a sheet, row by row.

    Args:
        tiles: Pictures of any sizes, as `to_rgb` takes them. They are read one at a time,
            so that a generator of large pictures needs the memory of one.
        labels: Texts above the pictures; too long ones are cut, missing ones are empty. A row
            without any has no line for them.
        columns: Pictures in a row.
        tile: Width and height of a picture's cell, in pixels.

    Returns:
        uint8 ``[H, columns * tile, 3]``, RGB.

    Raises:
        ConfigError: There is no picture, or the sheet would have no column or no room.
    """
    if columns < 1 or tile < 16:
        raise ConfigError(f"A sheet of {columns} columns of {tile} pixels cannot be drawn.")
    cells = [fit(picture, tile) for picture in tiles]
    if not cells:
        raise ConfigError("There is no picture to put on the sheet.")
    texts = [*labels, *[""] * len(cells)][: len(cells)]
    blank = np.full((tile, tile, 3), PAGE, np.uint8)
    rows = []
    for first in range(0, len(cells), columns):
        row, heads = cells[first : first + columns], texts[first : first + columns]
        if any(heads):
            rows.append(_label_line(heads, columns, tile))
        rows.append(np.hstack([*row, *[blank] * (columns - len(row))]))
    return np.vstack(rows)


def fit(picture: np.ndarray, tile: int) -> np.ndarray:
    """Shrinks or grows a picture into the middle of a square cell, keeping its shape.

    Args:
        picture: As `to_rgb` takes it.
        tile: Side of the cell, in pixels.

    Returns:
        uint8 ``[tile, tile, 3]``.
    """
    height, width = picture.shape[:2]
    scale = (tile - 2 * _MARGIN) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(to_rgb(picture), size, interpolation=cv2.INTER_AREA)
    cell = np.full((tile, tile, 3), PAGE, np.uint8)
    left, top = (tile - size[0]) // 2, (tile - size[1]) // 2
    cell[top : top + size[1], left : left + size[0]] = small
    return cell


def to_rgb(picture: np.ndarray) -> np.ndarray:
    """Makes uint8 ``[H, W, 3]`` of a gray or coloured picture.

    Args:
        picture: ``[H, W]`` or ``[H, W, 3]``; uint8, bool, or floating point in [0, 1].
    """
    if picture.dtype != np.uint8:
        picture = (np.clip(picture, 0, 1) * np.float32(255)).round().astype(np.uint8)
    return np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture


def _label_line(texts: Sequence[str], columns: int, tile: int) -> np.ndarray:
    """Writes the labels of a row: uint8 ``[label height, columns * tile, 3]``."""
    line = Image.new("RGB", (columns * tile, _LABEL_HEIGHT), (PAGE,) * 3)
    draw = ImageDraw.Draw(line)
    for column, text in enumerate(texts):
        place = (column * tile + _MARGIN, _LABEL_HEIGHT - _MARGIN)
        draw.text(place, _cut(text, tile - 2 * _MARGIN), (0, 0, 0), _font(), anchor="ld")
    return np.asarray(line)


def _cut(text: str, width: int) -> str:
    """Shortens a text in its middle: file names differ at their ends."""
    # Names may hold line breaks, or bytes that are no text, neither of which can be drawn.
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if _font().getlength(text) <= width:
        return text
    half = len(text) // 2
    while half and _font().getlength(f"{text[:half]}…{text[-half:]}") > width:
        half -= 1
    return f"{text[:half]}…{text[-half:]}" if half else ""


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Pillow's own font knows ASCII alone; file names hold more.
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", _FONT_SIZE)
