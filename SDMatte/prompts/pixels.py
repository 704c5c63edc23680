"""Prompts of users, in pixels of their image: validate them, then draw them as in training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from SDMatte.errors import DataError, PromptError
from SDMatte.images.arrays import is_tensor
from SDMatte.images.io import list_ids, trimap_levels
from SDMatte.images.resize import Window, resize_trimap
from SDMatte.prompts.maps import (
    Prompt,
    auto_prompt,
    extent,
    full_frame,
    prompt_of_box,
    prompt_of_mask,
    prompt_of_points,
)
from SDMatte.prompts.types import NUM_POINTS, PromptType, get_prompt_type

_MAX_WINDOW_ASPECT = 2


@dataclass(frozen=True)
class PixelPrompt:
    """A valid prompt for an image.

    Attributes:
        kind: Type of the prompt.
        hw: Height and width of the image.
        value: Box: its edges x0, y0, x1, y1, float64 ``[4]``. Points: x, y, float64 ``[K, 2]``.
            Mask: float32 ``[H, W]`` in [0, 1], the object being 0.5 and above. Trimap: uint8
            ``[H, W]`` of 0, 128, 255. None for ``auto``.
    """

    kind: PromptType
    hw: tuple[int, int]
    value: Any

    def draw(self, size: tuple[int, int], radius: float, psm: str = "gauss") -> Prompt:
        """Draw the prompt at the model's size, by the same functions as in training.

        ``radius`` is the sigma of a point, in pixels of that size, or the radius of its disc if
        ``psm`` is ``"circle"``.
        """
        height, width = size
        scale = np.array([width / self.hw[1], height / self.hw[0]])
        match self.kind.alias:
            case "box":
                x0, y0, x1, y1 = np.rint(self.value * np.tile(scale, 2)).astype(int).tolist()
                # Even the thinnest box keeps a row and a column.
                x0, y0 = min(x0, width - 1), min(y0, height - 1)
                return prompt_of_box((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), size)
            case "point":
                pixels = np.minimum((self.value * scale).astype(int), (width - 1, height - 1))
                return prompt_of_points([tuple(p) for p in pixels.tolist()], size, radius, psm)
            case "mask":
                return prompt_of_mask(_resize_mask(self.value, size))
            case "trimap":
                trimap = resize_trimap(self.value, size)
                if not trimap.any():  # nearest neighbor missed all foreground and unknown pixels
                    trimap[_resize_mask((self.value > 0).astype(np.float32), size)] = 0.5
                return Prompt(trimap, full_frame())
        return auto_prompt(size)

    def window_around(self, margin: float) -> Window:
        """Return the part of the image around the prompt, for models that work on crops.

        This is the whole image for points and ``auto``, which have no extent.

        Args:
            margin: Fraction of the extent to add on each side. The shorter side grows to at least
                half of the longer one. The window is clipped to the image.
        """
        match self.kind.alias:
            case "box":
                x0, y0, x1, y1 = self.value
            case "mask" | "trimap":
                bounds = extent(self.value > 0)
                assert bounds is not None  # empty maps are rejected
                x0, y0, x1, y1 = (*bounds[:2], bounds[2] + 1, bounds[3] + 1)
            case _:
                return Window.whole(self.hw)
        corners = np.array([[x0, y0], [x1, y1]])
        sides = np.diff(corners, axis=0)[0] * (1 + 2 * margin)
        sides = np.maximum(sides, sides.max() / _MAX_WINDOW_ASPECT)
        center = corners.mean(axis=0)
        limit = np.array(self.hw[::-1])
        left, top = np.floor(np.clip(center - sides / 2, 0, limit - 1)).astype(int)
        right, bottom = np.ceil(np.clip(center + sides / 2, (left + 1, top + 1), limit)).astype(int)
        return Window(int(top), int(left), int(bottom - top), int(right - left))

    def cropped(self, window: Window) -> "PixelPrompt":
        """Return the prompt in the coordinates of a window that contains it."""
        value, offset = self.value, np.array([window.left, window.top], np.float64)
        match self.kind.alias:
            case "box":
                value = value - np.tile(offset, 2)
            case "point":
                value = value - offset
            case "mask" | "trimap":
                value = window.cut(value)
        return PixelPrompt(self.kind, (window.height, window.width), value)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask to bool: pixels it covers by half or, if none, those it covers the most."""
    shrinks = size[0] < mask.shape[0] or size[1] < mask.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    covered = cv2.resize(mask, size[::-1], interpolation=interpolation)
    return covered >= min(0.5, float(covered.max()))


def select_prompt(**given: Any) -> dict[str, Any]:
    """Return the only argument that is not None; empty if all are.

    Raises:
        PromptError: Several arguments are not None.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise PromptError(
            f"Give one type of prompt: box, points, mask, trimap, text, or none; got "
            f"{', '.join(given)}."
        )
    return given


def check_text(text: Any) -> None:
    """Ensure that a text can describe an object.

    Raises:
        PromptError: The text is not a string, or has no letter or digit.
    """
    if not isinstance(text, str) or not any(character.isalnum() for character in text):
        raise PromptError(
            f'The text must describe the object, such as "the dog on the left"; got {_short(text)}.'
        )


def read_prompts(
    hw: tuple[int, int],
    *,
    box: Any = None,
    points: Any = None,
    mask: Any = None,
    trimap: Any = None,
) -> tuple[list[PixelPrompt], bool]:
    """Validate the prompt of a user; nothing is clipped or repaired.

    See `SDMatte.inference.predictor.MattePredictor.predict` for what is accepted. Coordinates that
    all lie in [0, 1] are rejected as fractions, except for integer points, which are pixels of the
    upper left corner. Integer masks may range to 255 or 65535: the object is all pixels of at least
    half of the range, or all nonzero pixels if they share one value.

    Returns:
        The prompts, one per matte, and whether a list was given. Without any, the ``auto`` prompt.

    Raises:
        PromptError: The prompt does not fit the image, or several types are given.
    """
    given = select_prompt(box=box, points=points, mask=mask, trimap=trimap)
    if not given:
        return [PixelPrompt(get_prompt_type("auto"), hw, None)], False
    name, value = given.popitem()
    match name:
        case "box":
            values, is_list = _read_boxes(value, hw)
        case "points":
            values, is_list = [_read_points(value, hw)], False
        case "mask":
            values, is_list = _read_maps(value, hw, name, _read_mask)
        case "trimap":
            values, is_list = _read_maps(value, hw, name, _read_trimap)
    kind = get_prompt_type("point" if name == "points" else name)
    return [PixelPrompt(kind, hw, one) for one in values], is_list


def _array(value: Any) -> np.ndarray:
    """Convert an array, a list, or a tensor on any device."""
    if is_tensor(value):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # numpy has no bfloat16
    return np.asarray(value)


def _numbers(value: Any, expected: str) -> np.ndarray:
    try:
        array = _array(value)
        if array.dtype.kind not in "uifO":  # `astype` would also convert bools, text and complex
            raise TypeError(array.dtype)
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{expected}; got {_short(value)}.") from error


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_boxes(value: Any, hw: tuple[int, int]) -> tuple[list[np.ndarray], bool]:
    expected = "A box is four numbers, x0, y0, x1, y1"
    array = _numbers(value, expected)
    if array.ndim not in (1, 2) or array.shape[-1] != 4 or array.size == 0:
        raise PromptError(f"{expected}; got {_short(value)}.")
    height, width = hw
    boxes = list(np.atleast_2d(array))
    for box in boxes:
        x0, y0, x1, y1 = box
        shown = f"({', '.join(f'{n:g}' for n in box)})"
        if _are_fractions(box) and max(hw) > 1:
            pixels = np.rint(box * (width, height, width, height))
            raise _fractions_error(f"The box {shown} has", pixels, hw)
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):  # also if one is NaN
            raise PromptError(
                f"The box {shown} does not fit the image, which is {width} wide and {height} "
                f"high: it must have 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}."
            )
    return boxes, array.ndim == 2


def _read_points(value: Any, hw: tuple[int, int]) -> np.ndarray:
    expected = f"Points are 1 to {NUM_POINTS} pairs of numbers, (x, y)"
    array = _numbers(value, expected)
    if array.ndim != 2 or array.shape[1] != 2 or not 1 <= len(array) <= NUM_POINTS:
        raise PromptError(f"{expected}; got {_short(value)}.")
    height, width = hw
    # (0, 0) and (1, 1) are pixels in the corner; no pixel is at (0.5, 0.5).
    if _are_fractions(array) and (array % 1).any() and max(hw) > 1:
        pixels = np.minimum(np.rint(array * (width, height)), (width - 1, height - 1))
        subject = "The point has" if len(array) == 1 else "The points have"
        raise _fractions_error(subject, pixels, hw)
    for x, y in array:
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(
                f"The point ({x:g}, {y:g}) is not in the image, which is {width} wide and "
                f"{height} high: it must have 0 <= x < {width} and 0 <= y < {height}."
            )
    return array


def _are_fractions(coords: np.ndarray) -> bool:
    return bool(((coords >= 0) & (coords <= 1)).all())


def _fractions_error(subject: str, pixels: np.ndarray, hw: tuple[int, int]) -> PromptError:
    meant = " ".join(f"{n:g}" for n in pixels.ravel())
    return PromptError(
        f"{subject} all coordinates in [0, 1], but must be in pixels of the image, which is "
        f"{hw[1]} wide and {hw[0]} high. Did you mean {meant}?"
    )


def _read_maps(
    value: Any, hw: tuple[int, int], name: str, read: Callable[[np.ndarray], np.ndarray]
) -> tuple[list[np.ndarray], bool]:
    """Read one map or several; a list may be one map, or contain maps."""
    expected = (
        f"A {name} is an array of numbers [H, W], here {list(hw)}; several are [N, H, W] or a list"
    )
    try:
        maps = [_array(one) for one in value] if isinstance(value, list | tuple) else []
        is_list = bool(maps) and all(array.ndim == 2 for array in maps)
        if not is_list:
            array = _array(value)
            is_list = array.ndim == 3 and len(array) > 0 and array.shape[1:] == hw
            maps = list(array) if is_list else [array]
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{expected}; got {_short(value)}.") from error
    for array in maps:
        if array.ndim != 2 or array.dtype.kind not in "buif":
            raise PromptError(f"{expected}; got {array.dtype} {list(array.shape)}.")
        if array.shape != hw:
            raise PromptError(
                f"The {name} is {array.shape[1]} wide and {array.shape[0]} high, the image "
                f"{hw[1]} and {hw[0]}: they must have the same size."
            )
    return [read(array) for array in maps], is_list


def _read_mask(array: np.ndarray) -> np.ndarray:
    """Convert a mask of any allowed range to float32 0 and 1."""
    low, high = array.min(), array.max()
    has_integers = array.dtype.kind != "f" or (high > 1 and (array == np.rint(array)).all())
    if not (low >= 0 and high <= (65535 if has_integers else 1)):
        raise PromptError(
            f"The mask's values range from {low:g} to {high:g}; allowed are bool, integers from 0 "
            f"to 255 or 65535, and floating point from 0 to 1."
        )
    if high > 0 and has_integers and array.min(where=array > 0, initial=high) == high:
        return (array > 0).astype(np.float32)  # one object, whatever its id
    full = 1 if high <= 1 else 255 if high <= 255 else 65535
    mask = (array >= 0.5 * full).astype(np.float32)
    if mask.any():
        return mask
    if has_integers and high > 0:
        raise PromptError(
            f"The mask has no value of at least half of {full}, so it seems to label several "
            f"objects by id ({list_ids(array)}): give the mask of one object, such as "
            f"`mask == {high:g}`, with values 0 and 255."
        )
    raise PromptError(
        "The mask is empty: at least one pixel must belong to the object (at least half of the "
        "largest value)."
    )


def _read_trimap(array: np.ndarray) -> np.ndarray:
    try:
        levels = trimap_levels(array)
    except DataError as error:
        raise PromptError(str(error)) from error
    if not levels.any():
        raise PromptError("The trimap has only background; it must have foreground or unknown.")
    return levels
