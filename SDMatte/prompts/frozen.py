"""Prompt files: the boxes, points and masks of test sets, frozen so that everybody sees the same.

A file is JSON, a line a sample::

    {
     "format": "SDMatte prompts", "version": 1,
     "size": 1024, "point_radius": 35, "psm": "gauss",
     "sets": {
      "AIM-500": {
       "AIM-500/mask/o_1.png": {"box": [x0, y0, x1, y1], "points": [[x, y], ...],
                                "mask": {"size": [1024, 1024], "counts": [...]}},
       ...

Everything is in pixels of the resized picture, whose height and width are the mask's ``size``; a
box is null where the alpha is empty, and there are no points where it has too few solid pixels. A
mask is written as COCO writes uncompressed run lengths: zeros and ones in turn, down the columns,
zeros first. A sample is known by its set and its alpha's path below the data root; of a folder
pair elsewhere, by the alpha's file name; how it is spelled does not matter
(`SDMatte.runtime.files.name_key`).
Trimaps are not in the file: those that a set does not give are drawn from the alpha, by the seed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from SDMatte.errors import DataError
from SDMatte.prompts.maps import Prompt, prompt_of_box, prompt_of_mask, prompt_of_points
from SDMatte.prompts.types import NUM_POINTS, PROMPT_TYPES
from SDMatte.runtime.files import name_key, read_error, write_text

FORMAT = "SDMatte prompts"
VERSION = 1

_SETTINGS = {
    "size": "pictures of {} pixels (dataloader.test.dataset.size)",
    "point_radius": "points of radius {} (settings.point_radius)",
    "psm": "points drawn as {} (settings.psm)",
}


@dataclass(frozen=True)
class PromptFile:
    """The frozen prompts of one or more test sets.

    Attributes:
        size: Side of the resized pictures, in pixels.
        point_radius: Radius of the points, in pixels.
        psm: Shape of the points, ``"gauss"`` or ``"circle"``.
        sets: Set -> key of a sample (`sample_key`) -> its ``box``, ``points`` and ``mask``.
        path: The file it was read from, for messages.
    """

    size: int
    point_radius: float
    psm: str
    sets: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    path: str = ""

    @classmethod
    def read(cls, path: str | Path) -> "PromptFile":
        """Reads a file.

        Raises:
            DataError: It cannot be read, is no prompt file or of another version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise read_error(path, error, "the prompt file ") from error
        except ValueError as error:
            raise DataError(f"The prompt file {path} is not valid JSON ({error}).") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{path} is no prompt file, as --save-prompts writes them.")
        if content.get("version") != VERSION:
            raise DataError(
                f"The prompt file {path} has version {content.get('version')!r}; this program "
                f"reads version {VERSION}."
            )
        missing = [name for name in (*_SETTINGS, "sets") if name not in content]
        if missing:
            raise DataError(f"The prompt file {path} lacks {', '.join(missing)}.")
        sets = content["sets"]
        if not isinstance(sets, dict) or not all(isinstance(s, dict) for s in sets.values()):
            raise DataError(f"The prompt file {path} is damaged: sets must hold samples by name.")
        sets = {name: {name_key(key): v for key, v in s.items()} for name, s in sets.items()}
        return cls(*(content[name] for name in _SETTINGS), sets=sets, path=str(path))

    def write(self, path: str | Path) -> None:
        """Write the file in one piece.

        Raises:
            OutputError: It cannot be written.
        """
        header = {"format": FORMAT, "version": VERSION}
        header |= {name: getattr(self, name) for name in _SETTINGS}
        sets = (
            f"  {json.dumps(name)}: {{\n"
            + ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(items.items()))
            + "\n  }"
            for name, items in sorted(self.sets.items())
        )
        lines = [f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in header.items()]
        text = "{\n" + "".join(lines) + ' "sets": {\n' + ",\n".join(sets) + "\n }\n}\n"
        write_text(path, text)

    def check(
        self, size: int, point_radius: float, psm: str, samples: Sequence[tuple[str, str]]
    ) -> None:
        """Sees whether the file has what a run needs.

        Args:
            size: Side of the run's pictures.
            point_radius: Radius of the run's points.
            psm: Shape of the run's points.
            samples: Set and key of each sample.

        Raises:
            DataError: It was made with another setting, or lacks a set or samples.
        """
        for name, value in (("size", size), ("point_radius", point_radius), ("psm", psm)):
            if getattr(self, name) != value:
                of = _SETTINGS[name].format(getattr(self, name))
                raise DataError(f"The prompt file {self.path} is for {of}; this run has {value}.")
        missing = [s for s in samples if s[1] not in self.sets.get(s[0], {})]
        if not missing:
            return
        dataset, key = missing[0]
        if dataset not in self.sets:
            known = ", ".join(self.sets) or "no set at all"
            raise DataError(f"The prompt file {self.path} has no set {dataset}, but {known}.")
        raise DataError(
            f"The prompt file {self.path} lacks {len(missing)} of the {len(samples)} samples of "
            f"{dataset}, the first of them {key}."
        )

    def prompts(self, dataset: str, key: str, shape: tuple[int, int]) -> dict[str, Prompt]:
        """Draws the frozen prompts of a sample, by the names of their maps.

        Args:
            dataset: Its set.
            key: Its key.
            shape: Height and width of its picture, after resizing.

        Raises:
            DataError: The entry is damaged, or for a picture of another shape.
        """
        try:
            entry = self.sets[dataset][key]
            box, points, (height, width) = entry["box"], entry["points"], entry["mask"]["size"]
            if (height, width) != shape:
                raise ValueError(
                    f"it is for {width}x{height} pixels, this run has {shape[1]}x{shape[0]}"
                )
            if len(points) > NUM_POINTS:
                raise ValueError(f"{len(points)} points, {NUM_POINTS} are allowed")
            corners = [] if box is None else [box[:2], box[2:]]
            for x, y in [*corners, *points]:
                if not (_is_pixel(x, width) and _is_pixel(y, height)):
                    raise ValueError(
                        f"({x}, {y}) is not a pixel of {width}x{height}; coordinates are integers, "
                        f"in pixels"
                    )
            if corners and not (box[0] <= box[2] and box[1] <= box[3]):
                raise ValueError(f"the box {box} does not end where it begins, or after")
            return {
                "bbox_mask": prompt_of_box(box, shape),
                "point_mask": prompt_of_points(points, shape, self.point_radius, self.psm),
                "mask": prompt_of_mask(decode_mask(entry["mask"]["counts"], shape)),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"The entry {dataset}, {key} of the prompt file {self.path} cannot be used: "
                f"{error}."
            ) from error


def sample_key(alpha: str | Path, root: str | Path) -> str:
    """Names a sample in a prompt file: its alpha's path below the data root, or its file name.

    Args:
        alpha: The path of the alpha, with the data root.
        root: The data root.
    """
    path = Path(alpha)
    return name_key(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name)


def freeze(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the entry of a sample.

    Args:
        sample: Of a data set in test: for box, point and mask, maps ``[1, H, W]`` in [-1, 1] and
            coordinates.
    """
    mask = sample["mask"][0].numpy() > 0
    height, width = mask.shape

    def pixels(name: str) -> list[list[int]]:
        coords = sample[PROMPT_TYPES[name].coords_key].numpy().astype(np.float64)
        return np.rint(coords.reshape(-1, 2) * (width, height)).astype(int).tolist()

    # No box has its last corner outside; one of a single row has an empty map, too.
    first, last = pixels("bbox_mask")
    box = None if last == [width, height] else [*first, *last]
    points = pixels("point_mask") if (sample["point_mask"] > -1).any() else []
    return {
        "box": box,
        "points": points,
        "mask": {"size": [height, width], "counts": encode_mask(mask)},
    }


def _is_pixel(place: Any, length: int) -> bool:
    is_whole = isinstance(place, int) and not isinstance(place, bool)
    return is_whole and 0 <= place < length


def encode_mask(mask: np.ndarray) -> list[int]:
    """Counts a mask's runs of zeros and ones in turn, down the columns, zeros first.

    Args:
        mask: bool ``[H, W]``.
    """
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def decode_mask(counts: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Draws the mask of `encode_mask`: bool ``[H, W]``.

    Raises:
        ValueError: The runs do not fill the picture.
    """
    runs = np.array(counts)
    if runs.dtype.kind != "i" or runs.ndim != 1 or runs.min(initial=0) < 0:
        raise ValueError("the counts of a mask must be whole numbers")
    if runs.sum() != shape[0] * shape[1]:
        raise ValueError(f"the mask has {runs.sum()} pixels, not {shape[0]} x {shape[1]}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape, order="F")
