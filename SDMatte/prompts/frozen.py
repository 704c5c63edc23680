"""Prompt files: frozen boxes, points and masks of test sets, for comparable results.

A file is JSON, with one line per sample::

    {
     "format": "SDMatte prompts", "version": 1,
     "size": 1024, "point_radius": 35, "psm": "gauss",
     "sets": {
      "AIM-500": {
       "AIM-500/mask/o_1.png": {"box": [x0, y0, x1, y1], "points": [[x, y], ...],
                                "mask": {"size": [1024, 1024], "counts": [...]}},
       ...

All coordinates are pixels of the resized image, whose height and width are the mask's ``size``.
The box is null if the alpha is empty, and the points are empty if it has too few solid pixels.
Masks are uncompressed COCO run lengths: alternating runs of zeros and ones, down the columns,
zeros first. (pycocotools reads them, but only checks and writes compressed ones.)

A sample is named by its set and its alpha's path below the data root or, in a folder pair
elsewhere, its alpha's file name, in any spelling (`SDMatte.runtime.files.name_key`). Trimaps are
not stored: they are part of the set, or drawn from the alpha with the seed.
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
    "size": "images of {} pixels (dataloader.test.dataset.size)",
    "point_radius": "points of radius {} (settings.point_radius)",
    "psm": "points drawn as {} (settings.psm)",
}


@dataclass(frozen=True)
class PromptFile:
    """The frozen prompts of one or more test sets.

    Attributes:
        size: Side of the resized images, in pixels.
        point_radius: Radius of the points, in pixels.
        psm: Shape of the points, ``"gauss"`` or ``"circle"``.
        sets: For each set, ``box``, ``points`` and ``mask`` by `sample_key`.
        path: The file that was read, for messages.
    """

    size: int
    point_radius: float
    psm: str
    sets: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    path: str = ""

    @classmethod
    def read(cls, path: str | Path) -> "PromptFile":
        """Read a file.

        Raises:
            DataError: The file cannot be read, is not a prompt file or has another version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise read_error(path, error, "the prompt file ") from error
        except ValueError as error:
            raise DataError(f"The prompt file {path} is not valid JSON ({error}).") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{path} is not a prompt file as written by --save-prompts.")
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
            raise DataError(f"The prompt file {path} is damaged: sets must map names to samples.")
        sets = {name: {name_key(key): v for key, v in s.items()} for name, s in sets.items()}
        return cls(**{name: content[name] for name in _SETTINGS}, sets=sets, path=str(path))

    def write(self, path: str | Path) -> None:
        """Write the file atomically.

        Raises:
            OutputError: The file cannot be written.
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
        """Ensure that the file fits a run.

        Args:
            size: Side of the run's images.
            point_radius: Radius of the run's points.
            psm: Shape of the run's points.
            samples: Set and key of each sample.

        Raises:
            DataError: The file was made with other settings, or lacks a set or samples.
        """
        for name, value in (("size", size), ("point_radius", point_radius), ("psm", psm)):
            if getattr(self, name) != value:
                found, expected = (
                    f"{v:g}" if isinstance(v, float) else v for v in (getattr(self, name), value)
                )
                raise DataError(
                    f"The prompt file {self.path} is for {_SETTINGS[name].format(found)}; this "
                    f"run has {expected}."
                )
        missing = [s for s in samples if s[1] not in self.sets.get(s[0], {})]
        if not missing:
            return
        dataset, key = missing[0]
        if dataset not in self.sets:
            known = ", ".join(self.sets) or "no sets"
            raise DataError(f"The prompt file {self.path} lacks the set {dataset}; it has {known}.")
        raise DataError(
            f"The prompt file {self.path} lacks {len(missing)} of the {len(samples)} samples of "
            f"{dataset}, such as {key}."
        )

    def prompts(self, dataset: str, key: str, shape: tuple[int, int]) -> dict[str, Prompt]:
        """Draw the frozen prompts of a sample.

        Args:
            dataset: Set of the sample.
            key: Key of the sample; see `sample_key`.
            shape: Height and width of the resized image.

        Returns:
            The prompts, by the names of their maps.

        Raises:
            DataError: The entry is missing, damaged, or for an image of another shape.
        """
        try:
            entry = self.sets[dataset][key]
            box, points, (height, width) = entry["box"], entry["points"], entry["mask"]["size"]
            if (height, width) != shape:
                raise ValueError(
                    f"it is for {width}x{height} pixels, this run has {shape[1]}x{shape[0]}"
                )
            if len(points) > NUM_POINTS:
                raise ValueError(f"it has {len(points)} points, more than {NUM_POINTS}")
            corners = [] if box is None else [box[:2], box[2:]]
            for x, y in [*corners, *points]:
                # `isinstance` would accept True and False as integers.
                if not (type(x) is type(y) is int and 0 <= x < width and 0 <= y < height):
                    raise ValueError(
                        f"({x}, {y}) is not a pixel of {width}x{height}; coordinates are integers, "
                        f"in pixels"
                    )
            if corners and not (box[0] <= box[2] and box[1] <= box[3]):
                raise ValueError(f"the box {box} must have x0 <= x1 and y0 <= y1")
            return {
                "bbox_mask": prompt_of_box(box, shape),
                "point_mask": prompt_of_points(points, shape, self.point_radius, self.psm),
                "mask": prompt_of_mask(decode_mask(entry["mask"]["counts"], shape)),
            }
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"The entry {dataset}, {key} of the prompt file {self.path} is not valid: {error}."
            ) from error


def sample_key(alpha: str | Path, root: str | Path) -> str:
    """Return a sample's key in prompt files: its alpha's path below the root, or the file name."""
    path = Path(alpha)
    return name_key(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name)


def freeze(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prompt file's entry for a sample.

    Args:
        sample: Sample of a test set, with the box, point and mask prompts: maps ``[1, H, W]`` in
            [-1, 1] and coordinates.
    """
    mask = sample["mask"][0].numpy() > 0
    height, width = mask.shape

    def pixels(name: str) -> list[list[int]]:
        coords = sample[PROMPT_TYPES[name].coords_key].numpy().astype(np.float64)
        return np.rint(coords.reshape(-1, 2) * (width, height)).astype(int).tolist()

    # The coordinates 0, 0, 1, 1 mean no box, since the last corner of a box is a pixel inside the
    # image. An empty map does not, since the map of a box of a single row is empty, too.
    first, last = pixels("bbox_mask")
    box = None if last == [width, height] else [*first, *last]
    points = pixels("point_mask") if (sample["point_mask"] > -1).any() else []
    return {
        "box": box,
        "points": points,
        "mask": {"size": [height, width], "counts": encode_mask(mask)},
    }


def encode_mask(mask: np.ndarray) -> list[int]:
    """Return the run lengths of a mask, bool ``[H, W]``."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def decode_mask(counts: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Decode run lengths to a mask, bool ``[H, W]``.

    Raises:
        ValueError: The counts are invalid or do not fill the mask.
    """
    runs = np.array(counts)
    if runs.dtype.kind != "i" or runs.ndim != 1 or runs.min(initial=0) < 0:
        raise ValueError("the counts of a mask must be integers of at least 0")
    if runs.sum() != shape[0] * shape[1]:
        raise ValueError(f"the mask has {runs.sum()} pixels, not {shape[0]} x {shape[1]}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape, order="F")
