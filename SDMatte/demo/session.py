"""One visitor's image, mattes and files."""

import base64
import io
import re
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from SDMatte.errors import DataError, PromptError
from SDMatte.images.arrays import PAPER, flatten, parse_color, read_pixels
from SDMatte.images.decode import read_hw, read_metadata
from SDMatte.images.io import write_image
from SDMatte.images.sheets import checkerboard
from SDMatte.inference.predictor import EncodedImage, MattePredictor
from SDMatte.inference.result import MatteResult, OutputSettings

PREVIEW = 1024
"""Longest side of the images shown in the browser, in pixels."""

VIEWS = ("Checkerboard", "Color", "Image", "Matte")

_MAX_STEPS = 6  # that can be undone; each keeps a full-size matte in memory
_SHADE = 170  # of 255, opacity of the shade over the background

Gesture = Mapping[str, Any]
"""What a visitor drew: ``tool``, ``points`` (pixels of the image) and ``width`` of a stroke."""


@dataclass(frozen=True)
class Step:
    """A matte, and the prompt that it was made from."""

    result: MatteResult
    prompt: dict[str, Any]  # of `MattePredictor.predict`
    gestures: list[Gesture]  # that stay visible


class Session:
    """The state of one visitor.

    Args:
        folder: Folder for files that the browser fetches; created on demand, removed by `close`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.background: np.ndarray | None = None  # uint8 [h, w, 3], of the view "Image"
        self._clear()
        self._num_files = 0
        self._closed = False

    def _clear(self) -> None:
        self.steps: deque[Step] = deque(maxlen=_MAX_STEPS)
        self._pixels: tuple[np.ndarray, np.ndarray | None] | None = None
        # The encoded image, with its model and resolution as key.
        self._encoded: tuple[tuple[Any, int], EncodedImage] | None = None

    def open(self, path: Path, name: str, max_pixels: float) -> None:
        """Read an image.

        Args:
            path: The file.
            name: The visitor's name for the file, for messages and downloads.
            max_pixels: Largest allowed number of pixels.

        Raises:
            DataError: The file is not an image, or is too large. The previous image is kept.
        """
        pixels = read_upload(path, name, max_pixels)
        metadata = read_metadata(path)
        small, opacity = reduce(pixels[0]), pixels[1]
        self._clear()
        self._stem = re.sub(r"[^\w.-]+", "_", Path(name).stem)[:80] or "image"
        self._small, self._metadata = small, metadata
        self._small_opacity = None if opacity is None else reduce(opacity)
        self._pixels = pixels  # last, because `compare` may run meanwhile

    def set_background(self, path: Path, name: str, max_pixels: float) -> None:
        """Read the background of the view "Image", like `open`."""
        colors, opacity = read_upload(path, name, max_pixels)
        self.background = reduce(flatten(colors, opacity, PAPER))

    def encode(self, predictor: MattePredictor) -> EncodedImage:
        """Return the encoded image, cached for the last model and resolution."""
        if self._pixels is None:
            raise PromptError("No image is open: drop one, or choose a sample.")
        key = predictor.model, predictor.resolution
        if self._encoded is None or self._encoded[0] != key:
            self._encoded = key, predictor.encode_pixels(*self._pixels)
        return self._encoded[1]

    def predict(
        self, predictor: MattePredictor, gestures: Sequence[Gesture], transparent: bool, tiles: bool
    ) -> MatteResult:
        """Predict a matte from gestures, or from the last prompt if there are none."""
        encoded = self.encode(predictor)
        prompt = self._read_prompt(gestures, encoded.image.shape[:2])
        result = predictor.predict(
            **prompt, transparent=transparent, refine="tiles" if tiles else None, image=encoded
        )
        assert isinstance(result, MatteResult)  # a single prompt gives no list
        kept = [] if "mask" in prompt else list(gestures)  # strokes become part of the matte
        self.steps.append(Step(result, prompt, kept))
        return result

    def _read_prompt(self, gestures: Sequence[Gesture], hw: tuple[int, int]) -> dict[str, Any]:
        if not gestures:
            return self.steps[-1].prompt if self.steps else {}
        try:
            tool = gestures[-1]["tool"]
            if tool == "box":
                corners = np.array(gestures[-1]["points"])  # [2, 2]
                return {"box": [*corners.min(0).tolist(), *corners.max(0).tolist()]}
            if tool == "points":
                return {"points": [gesture["points"][0] for gesture in gestures]}
            mask = np.zeros(hw, np.uint8)
            if self.steps:
                mask[self.steps[-1].result.alpha >= 0.5] = 255
            for gesture in gestures:
                value = 255 if gesture["tool"] == "paint" else 0
                line = np.array(gesture["points"], np.int32)
                cv2.polylines(mask, [line], False, value, max(1, round(gesture["width"])))
            return {"mask": mask}
        except (KeyError, IndexError, TypeError, ValueError, cv2.error) as error:
            raise PromptError("The prompt is damaged; reload the page.") from error

    def undo(self, gestures: Sequence[Gesture]) -> list[Gesture]:
        """Remove the last gesture since the last matte or, if there is none, the last matte.

        Returns:
            The gestures to show.
        """
        if gestures and list(gestures) != self.shown():
            return list(gestures[:-1])
        if self.steps:
            self.steps.pop()
        return self.shown()

    def shown(self) -> list[Gesture]:
        """Return the gestures that belong to the last matte."""
        return self.steps[-1].gestures if self.steps else []

    def stage(self, gestures: Sequence[Gesture], with_image: bool = False) -> dict[str, Any]:
        """Return the value of the stage component; see ``stage.js``."""
        value: dict[str, Any] = {"gestures": list(gestures), "matte": None}
        if with_image and self._pixels is not None:
            height, width = self._pixels[0].shape[:2]
            image = data_url(self._small, "JPEG")
            value |= {"image": image, "width": width, "height": height}
        if self.steps:
            shade = np.zeros((*self._small.shape[:2], 4), np.uint8)
            shade[..., 3] = (1 - reduce(self.steps[-1].result.alpha)) * _SHADE
            value["matte"] = data_url(shade, "WEBP")
        return value

    def compare(self, view: str, color: str) -> tuple[str, str] | None:
        """Write the reduced image and a view of the matte, and return their paths."""
        if self._pixels is None:
            return None
        small = self._small
        shown = self._render(view, color) if self.steps else small
        return str(self._write("before.jpg", small)), str(self._write("after.jpg", shown))

    def _render(self, view: str, color: str) -> np.ndarray:
        result = self.steps[-1].result
        alpha = reduce(result.alpha)
        if view == "Matte":
            return np.repeat(np.round(alpha * 255).astype(np.uint8)[..., None], 3, axis=2)
        small = MatteResult(self._small, alpha, result.prompt, self._small_opacity)
        if view == "Checkerboard":
            return small.composite(checkerboard(alpha.shape))
        if view == "Image" and self.background is not None:
            return small.composite(self.background)
        return small.composite(_read_color(color))

    def write(self, kind: str, bits: int) -> Path:
        """Write the last matte (``"alpha"``) or its cutout (``"cutout"``) at full size, as PNG."""
        if not self.steps:
            raise PromptError("No matte yet: prompt the object and press Matte.")
        result = self.steps[-1].result
        # A copy, so that its cached full-size colors are freed afterwards.
        copy = MatteResult(result.image, result.alpha, result.prompt, result.opacity)
        array = OutputSettings(kind, bits=bits).render(copy)
        name = {"cutout": "cutout", "alpha": "matte"}[kind]
        return self._write(f"{self._stem}_{name}.png", array, self._metadata)

    def _write(self, name: str, array: np.ndarray, metadata: Any = None) -> Path:
        self._num_files += 1  # a new URL, because browsers cache files by URL
        path = write_image(self.folder / str(self._num_files) / name, array, metadata)
        if self._closed:  # the visitor left meanwhile
            self.close()
        return path

    def close(self) -> None:
        """Forget everything and remove the files."""
        self._closed = True
        self._clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def read_upload(path: Path, name: str, max_pixels: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an uploaded image like `read_pixels`; errors show the visitor's name for it."""
    try:
        height, width = read_hw(path)
        if height * width > max_pixels:
            raise DataError(
                f"{name} has {height * width / 1e6:.1f} megapixels; the limit of this page is "
                f"{max_pixels / 1e6:g}."
            )
        return read_pixels(path)
    except DataError as error:
        raise DataError(str(error).replace(str(path), name)) from error


def reduce(array: np.ndarray, side: int = PREVIEW) -> np.ndarray:
    """Reduce ``[H, W(, C)]`` so that the longest side has at most ``side`` pixels."""
    scale = side / max(array.shape[:2])
    if scale >= 1:
        return array
    height, width = (max(1, round(n * scale)) for n in array.shape[:2])
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA)


def data_url(array: np.ndarray, kind: str) -> str:
    """Encode an image as a data URL."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _read_color(text: str) -> tuple[int, int, int]:
    """Parse the color picker's value: CSS, also ``rgba(r, g, b, a)`` with fractions.

    Raises:
        DataError: It is something else, such as the path of a file of the server.
    """
    whole = text
    if text.startswith("rgb"):
        numbers = re.findall(r"\d+(?:\.\d+)?", text)[:3]
        whole = f"rgb({','.join(str(round(float(number))) for number in numbers)})"
    color = parse_color(whole)
    if color is None:
        raise DataError(f"{text!r:.80} is not a color such as white or #00b140.")
    return color
