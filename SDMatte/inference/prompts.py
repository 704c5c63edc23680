"""Prompts as users give them, in pixels of their picture: checked, then drawn as in training."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from SDMatte.data.prompts import (
    Prompt,
    auto_prompt,
    prompt_of_box,
    prompt_of_mask,
    prompt_of_points,
    whole_picture,
)
from SDMatte.data.transforms import resize_trimap
from SDMatte.errors import PromptError
from SDMatte.prompts import NUM_POINTS, PromptType, get_prompt_type

_TRIMAP_VALUES = (0, 127, 128, 255)


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
    """Checks what a user gave; nothing is clipped or repaired.

    Args:
        hw: Height and width of the picture.
        box: x0, y0, x1, y1, edges in pixels, 0 to width and 0 to height; or a list of boxes.
        points: One to ten (x, y) in pixels, from 0 up to, but without, width and height.
        mask: ``[H, W]``, or a list of them: bool; whole numbers, 0 and 1 or 0 to 255; or floating
            point in [0, 1].
        trimap: ``[H, W]``, or a list of them: 0 background, 128 unknown, 255 foreground, or
            0, .5, 1.

    Returns:
        The prompts, one a matte, and whether a list was given. Without any, the ``auto`` prompt.

    Raises:
        PromptError: The prompt does not fit the picture, or there is more than one kind.
    """
    given = {"box": box, "points": points, "mask": mask, "trimap": trimap}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise PromptError(
            f"Give one kind of prompt: box, points, mask, trimap, or none; got {', '.join(given)}."
        )
    if not given:
        return [PixelPrompt(get_prompt_type("auto"), hw, None)], False
    name, value = given.popitem()
    values, many = _READERS[name](value, hw)
    kind = get_prompt_type({"points": "point"}.get(name, name))
    return [PixelPrompt(kind, hw, one) for one in values], many


def _numbers(value: Any, what: str) -> np.ndarray:
    try:
        array = _array(value)
        if array.dtype.kind not in "buifO":  # text and complex numbers would be cast, too
            raise TypeError(array.dtype)
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{what}; got {_short(value)}.") from error


def _array(value: Any) -> np.ndarray:
    """Makes an array of what may be one, a list, or a tensor on any device."""
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_boxes(value: Any, hw: tuple[int, int]) -> tuple[list[np.ndarray], bool]:
    what = "A box is four numbers, x0, y0, x1, y1"
    array = _numbers(value, what)
    if array.ndim not in (1, 2) or array.shape[-1] != 4 or array.size == 0:
        raise PromptError(f"{what}; got {_short(value)}.")
    height, width = hw
    boxes = list(np.atleast_2d(array))
    for box in boxes:
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):  # also with NaN
            raise PromptError(
                f"The box {_list(box)} does not fit the picture, which is {width} wide and "
                f"{height} high: 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height} are needed."
            )
    return boxes, array.ndim == 2


def _read_points(value: Any, hw: tuple[int, int]) -> tuple[list[np.ndarray], bool]:
    what = f"Points are 1 to {NUM_POINTS} pairs of numbers, (x, y)"
    array = _numbers(value, what)
    if array.ndim != 2 or array.shape[1] != 2 or not 1 <= len(array) <= NUM_POINTS:
        raise PromptError(f"{what}; got {_short(value)}.")
    height, width = hw
    for x, y in array:
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(
                f"The point ({x:g}, {y:g}) is not in the picture, which is {width} wide and "
                f"{height} high: 0 <= x < {width} and 0 <= y < {height} are needed."
            )
    return [array], False


def _list(numbers: Iterable[float]) -> str:
    return f"({', '.join(f'{number:g}' for number in numbers)})"


def _read_maps(
    value: Any, hw: tuple[int, int], name: str, read: Callable[[np.ndarray], np.ndarray]
) -> tuple[list[np.ndarray], bool]:
    maps, many = _split_maps(value, hw, name)
    for array in maps:
        if array.shape != hw:
            raise PromptError(
                f"The {name} is {array.shape[1]} wide and {array.shape[0]} high, the picture "
                f"{hw[1]} and {hw[0]}: they must be of one size."
            )
    return [read(array) for array in maps], many


def _split_maps(value: Any, hw: tuple[int, int], name: str) -> tuple[list[np.ndarray], bool]:
    """Tells one map from several; lists may hold maps or be one."""
    what = f"A {name} is an array [H, W], here {list(hw)}, several are [N, H, W] or a list"
    try:
        if isinstance(value, list | tuple):
            arrays = [_array(one) for one in value]
            if arrays and all(array.ndim == 2 for array in arrays):
                return [_checked(array, what) for array in arrays], True
        array = _array(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{what}; got {_short(value)}.") from error
    if array.ndim == 3 and len(array) and array.shape[1:] == hw:
        return [_checked(one, what) for one in array], True
    return [_checked(array, what)], False


def _checked(array: np.ndarray, what: str) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "buif":
        raise PromptError(f"{what} of numbers; got {array.dtype} {list(array.shape)}.")
    return array


def _read_mask(array: np.ndarray) -> np.ndarray:
    low, high = array.min(), array.max()
    limit = 255 if array.dtype.kind in "iu" else 1
    if not (low >= 0 and high <= limit):
        raise PromptError(
            f"The mask's values go from {low:g} to {high:g}; allowed are bool, whole numbers "
            f"from 0 to 255, and floating point from 0 to 1."
        )
    full = 1 if high <= 1 else 255  # whole numbers are 0 and 1, or 0 to 255
    mask = (array >= 0.5 * full).astype(np.float32)
    if not mask.any():
        raise PromptError(
            "The mask is empty: at least one pixel must belong to the object (be at least half "
            "of the largest value)."
        )
    return mask


def _read_trimap(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f" and np.isin(array, (0, 0.5, 1)).all():
        array = np.ceil(array * 255)  # {0, .5, 1} -> {0, 128, 255}
    if not np.isin(array, _TRIMAP_VALUES).all():
        others = np.setdiff1d(array, _TRIMAP_VALUES)
        raise PromptError(
            f"A trimap holds 0 (background), 128 (unknown) and 255 (foreground), or 0, .5 and 1; "
            f"this one also holds {float(others[0]):g}."
        )
    if not array.any():
        raise PromptError("The trimap is background all over: there is no object in it.")
    return array.astype(np.uint8)


_READERS: dict[str, Callable[[Any, tuple[int, int]], tuple[list[np.ndarray], bool]]] = {
    "box": _read_boxes,
    "points": _read_points,
    "mask": lambda value, hw: _read_maps(value, hw, "mask", _read_mask),
    "trimap": lambda value, hw: _read_maps(value, hw, "trimap", _read_trimap),
}
