"""Prompts as users give them, in pixels of their picture: checked, then drawn as in training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from SDMatte.images.resize import resize_trimap
from SDMatte.prompts.maps import (
    Prompt,
    auto_prompt,
    prompt_of_box,
    prompt_of_mask,
    prompt_of_points,
    whole_picture,
)
from SDMatte.prompts.types import PromptType, get_prompt_type
from SDMatte.prompts.values import read_values


@dataclass(frozen=True)
class PixelPrompt:
    """A prompt that fits its picture.

    Attributes:
        kind: Which prompt it is.
        hw: Height and width of the picture.
        value: Of a box, float64 ``[4]``: x0, y0, x1, y1, edges of the box; of points, float64
            ``[K, 2]``: x, y; of a mask, float32 ``[H, W]`` in [0, 1], the object from .5 on; of a
            trimap, uint8 ``[H, W]`` of 0, 128, 255; None of ``auto``.
    """

    kind: PromptType
    hw: tuple[int, int]
    value: np.ndarray | None

    def draw(self, size: tuple[int, int], radius: float) -> Prompt:
        """Makes what the model takes: the same functions draw it as draw the training's.

        Args:
            size: Height and width at which the model sees the picture.
            radius: Sigma of a point, in pixels of that size.
        """
        return _DRAWERS[self.kind.alias](self.value, self.hw, size, radius)


def _draw_box(value, hw, size, radius) -> Prompt:
    (height, width), scale = size, _scale(hw, size)
    x0, y0, x1, y1 = np.rint(value * np.tile(scale, 2)).astype(int).tolist()
    # However thin, a box keeps a row and a column.
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return prompt_of_box((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), size)


def _draw_points(value, hw, size, radius) -> Prompt:
    last = (size[1] - 1, size[0] - 1)
    pixels = np.minimum((value * _scale(hw, size)).astype(int), last)
    return prompt_of_points([tuple(point) for point in pixels.tolist()], size, radius)


def _draw_mask(value, hw, size, radius) -> Prompt:
    return prompt_of_mask(_cells(value, size))


def _cells(value: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Finds the pixels of another size that are mask by half, or by the most there is."""
    shrinks = size[0] < value.shape[0] or size[1] < value.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    share = cv2.resize(value, size[::-1], interpolation=interpolation)
    return share >= min(0.5, float(share.max()))


def _draw_trimap(value, hw, size, radius) -> Prompt:
    drawn = resize_trimap(value, size)
    if not drawn.any():  # so little that no pixel met it
        drawn[_cells((value > 0).astype(np.float32), size)] = 0.5
    return Prompt(drawn, whole_picture())


def _draw_auto(value, hw, size, radius) -> Prompt:
    return auto_prompt(size)


_DRAWERS: dict[str, Callable[..., Prompt]] = {
    "box": _draw_box,
    "point": _draw_points,
    "mask": _draw_mask,
    "trimap": _draw_trimap,
    "auto": _draw_auto,
}


def _scale(hw: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    return np.array([size[1] / hw[1], size[0] / hw[0]])


def read_prompts(
    hw: tuple[int, int],
    *,
    box: Any = None,
    points: Any = None,
    mask: Any = None,
    trimap: Any = None,
) -> tuple[list[PixelPrompt], bool]:
    """Check what a user gave; nothing is clipped or repaired.

    Args:
        hw: Height and width of the image.
        box: x0, y0, x1, y1, edges in pixels, 0 to width and 0 to height; or a list of boxes. One
            whose coordinates all lie in [0, 1] is refused, as fractions of the size.
        points: One to ten (x, y) in pixels, from 0 up to, but without, width and height. If all
            coordinates lie in [0, 1], they must be integers: pixels of the upper left corner.
        mask: ``[H, W]``, or a list of them: bool; integers, 0 and 1, 0 to 255, or 0 to 65535; or
            floating point in [0, 1]. From half of the range on a pixel is the object; of integers
            with one value but 0, whatever it is, all that have it.
        trimap: ``[H, W]``, or a list of them: 0 background, 127 or 128 unknown, 255 foreground; or
            0, 1, 2; or floating point, 0, .5, 1.

    Returns:
        The prompts, one a matte, and whether a list was given. Without any, the ``auto`` prompt.

    Raises:
        PromptError: The prompt does not fit the picture, or there is more than one kind.
    """
    name, values, many = read_values(hw, box=box, points=points, mask=mask, trimap=trimap)
    kind = get_prompt_type(name)
    return [PixelPrompt(kind, hw, one) for one in values], many
