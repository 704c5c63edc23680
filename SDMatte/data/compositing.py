"""Composites of a foreground and a background (data/README.md, step 2)."""

from typing import NamedTuple

import cv2
import numpy as np

from SDMatte.data.settings import DataSettings
from SDMatte.images.resize import BilinearGrid, Window, pick, unit


def composite(
    fg: np.ndarray,
    alpha: np.ndarray,
    background: np.ndarray,
    size: int,
    rng: np.random.Generator,
    settings: DataSettings,
    hw: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Put an object on a background twice, side by side, and keep one copy as the target.

    Two equal objects, of which only the prompted one is the target, are what makes the prompt
    matter. The result equals compositing at full size and resizing, but only the pixels that the
    resize reads are computed. The background is resized and blurred in 8 bits.

    Args:
        fg: Colors of the foreground, uint8 ``[H, W, 3]``.
        alpha: ``[H, W]``, uint8, or float32 in [0, 1].
        background: uint8 ``[h, w, 3]`` of any size.
        size: Side of the result.
        rng: Source of the choices.
        settings: Their probabilities.
        hw: Height and width of the foreground's file. If it was read at a reduced size, it is
            composited at the size of the result, and the blur is scaled accordingly.

    Returns:
        The image, float32 ``[size, size, 3]`` in [0, 1]; the alpha of the target, float32
        ``[size, size]`` in [0, 1]; height and width before resizing, in pixels of the files.
    """
    choices = _choose(rng, settings)
    hw = hw or alpha.shape
    if hw != alpha.shape:
        each = (-(-size // choices.copies), size)  # width and height of a copy
        fg, alpha = (cv2.resize(a, each, interpolation=cv2.INTER_LINEAR) for a in (fg, alpha))
    height, width = alpha.shape
    canvas = (height, choices.copies * width)
    background = cv2.resize(background, canvas[::-1], interpolation=cv2.INTER_LINEAR)
    if choices.blur:
        blur = [max(1, round(choices.blur * a / b)) for a, b in zip(alpha.shape, hw, strict=True)]
        background = cv2.blur(background, (blur[1], blur[0]))
    grid = BilinearGrid(Window.whole(canvas), size)
    part = unit(pick(alpha, grid.rows, grid.columns % width))
    image = pick(background, grid.rows, grid.columns).astype(np.float32)
    image += (pick(fg, grid.rows, grid.columns % width) - image) * part[..., None]
    target = part * (grid.columns // width == choices.kept)
    small = grid.combine(image) / np.float32(255)  # [0, 255] -> [0, 1]
    return small, grid.combine(target), (hw[0], choices.copies * hw[1])


class _Choices(NamedTuple):
    copies: int
    blur: int  # box size in pixels of the files, 0 for none
    kept: int


def _choose(rng: np.random.Generator, settings: DataSettings) -> _Choices:
    """Draw whether to duplicate, whether to blur, the blur's size and the copy to keep, in order.

    The copy (0 is the left one) is drawn only if there are two.
    """
    duplicate = rng.random() < settings.duplicate_prob
    blur = rng.random() < settings.blur_prob
    blur_size = int(rng.choice(settings.blur_sizes))
    kept = int(rng.integers(2)) if duplicate else 0
    return _Choices(2 if duplicate else 1, blur_size if blur else 0, kept)
