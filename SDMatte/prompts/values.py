"""Checks of prompts as users give them; without torch, so that mistakes show before it loads."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from SDMatte.errors import DataError, PromptError
from SDMatte.images.arrays import is_tensor
from SDMatte.images.io import list_ids, trimap_levels
from SDMatte.prompts.types import NUM_POINTS


def read_values(
    hw: tuple[int, int],
    *,
    box: Any = None,
    points: Any = None,
    mask: Any = None,
    trimap: Any = None,
) -> tuple[str, list[np.ndarray | None], bool]:
    """Check a prompt; nothing is clipped or repaired.

    Args:
        hw: Height and width of the image.
        box: See `SDMatte.prompts.pixels.read_prompts`, as for the others.
        points: Likewise.
        mask: Likewise.
        trimap: Likewise.

    Returns:
        The short name of its type; the values of each prompt, as `PixelPrompt` has them; and
        whether a list was given. Without any prompt, ``auto`` and None.

    Raises:
        PromptError: The prompt does not fit the image, or there is more than one kind.
    """
    given = {"box": box, "points": points, "mask": mask, "trimap": trimap}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise PromptError(
            f"Give one kind of prompt: box, points, mask, trimap, or none; got {', '.join(given)}."
        )
    if not given:
        return "auto", [None], False
    name, value = given.popitem()
    values, many = _READERS[name](value, hw)
    return {"points": "point"}.get(name, name), values, many


def _numbers(value: Any, what: str) -> np.ndarray:
    try:
        array = _array(value)
        if array.dtype.kind not in "buifO":  # text and complex numbers would be cast, too
            raise TypeError(array.dtype)
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{what}; got {_short(value)}.") from error


def _array(value: Any) -> np.ndarray:
    """Make an array of an array, a list, or a tensor on any device."""
    return np.asarray(value.detach().cpu() if is_tensor(value) else value)


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
        if _lies_in_unit_square(box) and max(hw) > 1:
            pixels = np.rint(box * (width, height, width, height))
            raise PromptError(
                f"The box {_list(box)} has all its coordinates in [0, 1], but pixels are expected; "
                f"the image is {width} wide and {height} high. "
                f"Did you mean {' '.join(f'{n:g}' for n in pixels)}?"
            )
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):  # also with NaN
            raise PromptError(
                f"The box {_list(box)} does not fit the image, which is {width} wide and "
                f"{height} high: 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height} are needed."
            )
    return boxes, array.ndim == 2


def _read_points(value: Any, hw: tuple[int, int]) -> tuple[list[np.ndarray], bool]:
    what = f"Points are 1 to {NUM_POINTS} pairs of numbers, (x, y)"
    array = _numbers(value, what)
    if array.ndim != 2 or array.shape[1] != 2 or not 1 <= len(array) <= NUM_POINTS:
        raise PromptError(f"{what}; got {_short(value)}.")
    height, width = hw
    # (0, 0) and (1, 1) are pixels of a corner; no pixel is at (0.5, 0.5).
    if _lies_in_unit_square(array) and (array % 1).any() and max(hw) > 1:
        pixels = np.minimum(np.rint(array * (width, height)), (width - 1, height - 1))
        points = "point has" if len(array) == 1 else "points have"
        raise PromptError(
            f"The {points} all coordinates in [0, 1], but pixels are expected; the image is "
            f"{width} wide and {height} high: got {' '.join(f'{n:g}' for n in array.ravel())}. "
            f"Did you mean {' '.join(f'{n:g}' for n in pixels.ravel())}?"
        )
    for x, y in array:
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(
                f"The point ({x:g}, {y:g}) is not in the image, which is {width} wide and "
                f"{height} high: 0 <= x < {width} and 0 <= y < {height} are needed."
            )
    return [array], False


def _lies_in_unit_square(coords: np.ndarray) -> bool:
    return bool(((coords >= 0) & (coords <= 1)).all())


def _list(numbers: Iterable[float]) -> str:
    return f"({', '.join(f'{number:g}' for number in numbers)})"


def _read_maps(
    value: Any, hw: tuple[int, int], name: str, read: Callable[[np.ndarray], np.ndarray]
) -> tuple[list[np.ndarray], bool]:
    maps, many = _split_maps(value, hw, name)
    for array in maps:
        if array.shape != hw:
            raise PromptError(
                f"The {name} is {array.shape[1]} wide and {array.shape[0]} high, the image "
                f"{hw[1]} and {hw[0]}: they must be of one size."
            )
    return [read(array) for array in maps], many


def _split_maps(value: Any, hw: tuple[int, int], name: str) -> tuple[list[np.ndarray], bool]:
    """Tell one map from several; lists may hold maps or be one."""
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
    """Recognize the range of a mask's values: float32 of 0 and 1."""
    low, high = array.min(), array.max()
    is_whole = array.dtype.kind != "f" or (high > 1 and (array == np.rint(array)).all())
    if not (low >= 0 and high <= (65535 if is_whole else 1)):
        raise PromptError(
            f"The mask's values go from {low:g} to {high:g}; allowed are bool, integers from 0 to "
            f"255 or 65535, and floating point from 0 to 1."
        )
    if high > 0 and is_whole and array.min(where=array > 0, initial=high) == high:
        return (array > 0).astype(np.float32)  # one object, whatever it is called
    full = 1 if high <= 1 else 255 if high <= 255 else 65535
    mask = (array >= 0.5 * full).astype(np.float32)
    if mask.any():
        return mask
    if is_whole and high > 0:
        raise PromptError(
            f"The mask has no value of at least half of {full}, so it seems to hold the ids of "
            f"several objects ({list_ids(array)}): give the mask of one, such as "
            f"`mask == {high:g}`, written as 0 and 255."
        )
    raise PromptError(
        "The mask is empty: at least one pixel must belong to the object (be at least half of the "
        "largest value)."
    )


def _read_trimap(array: np.ndarray) -> np.ndarray:
    try:
        levels = trimap_levels(array)
    except DataError as error:
        raise PromptError(str(error)) from error
    if not levels.any():
        raise PromptError("The trimap is background all over: there is no object in it.")
    return levels


_READERS: dict[str, Callable[[Any, tuple[int, int]], tuple[list[np.ndarray], bool]]] = {
    "box": _read_boxes,
    "points": _read_points,
    "mask": lambda value, hw: _read_maps(value, hw, "mask", _read_mask),
    "trimap": lambda value, hw: _read_maps(value, hw, "trimap", _read_trimap),
}
