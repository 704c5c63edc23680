"""Results of an evaluation: scores per image, their means, and the files that store them.

All stored values are raw: MSE and MAD are not multiplied by 1000.
"""

import csv
import io
import json
import math
import os
import platform
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from SDMatte.errors import DataError
from SDMatte.runtime.files import read_error, write_text
from SDMatte.scoring.metrics import METRICS

MATTES, ERRORS = "mattes", "errors"
SCORES, SUMMARY, SUMMARY_PAGE = "scores.csv", "summary.json", "summary.md"
SHEET, PROGRESS = "worst_and_best.png", "progress.jsonl"

_PATHS = ("alpha_path", "pred_path", "image_path")
_HEADER = {  # types of the values in the summary
    "dataset": str,
    "prompt": str,
    "prompt_seed": int | None,
    "model": str,
    "protocol": str,
    "trimap_restricted": bool,
}


@dataclass(frozen=True)
class ImageScore:
    """Scores and paths of one image."""

    name: str  # stem of the alpha file and of the matte
    height: int
    width: int
    scores: dict[str, float]  # metric to raw value; empty if the matte was not scored
    alpha_path: str
    pred_path: str = ""  # the matte on disk; empty if none was written
    image_path: str = ""  # empty if unknown

    def __post_init__(self) -> None:
        """Normalize the name: file systems spell the same name differently."""
        object.__setattr__(self, "name", unicodedata.normalize("NFC", self.name))


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one data set under one prompt."""

    dataset: str
    protocol: str  # "official" or "corrected"
    images: Sequence[ImageScore]
    prompt: str = ""  # short name; empty if unknown
    model: str = ""  # name of the model or method
    prompt_seed: int | None = None  # seed of the drawn prompts; None if none were drawn
    trimap_restricted: bool = False  # whether only the unknown pixels of the trimaps count
    info: Mapping[str, Any] = field(default_factory=dict)  # such as the checkpoint

    def __post_init__(self) -> None:
        """Validate the images.

        Raises:
            DataError: There are no images, or several have the same name.
        """
        if not self.images:
            raise DataError(f"{self.key}: no images to average over.")
        repeated = sorted(
            n for n, count in Counter(i.name for i in self.images).items() if count > 1
        )
        if repeated:
            raise DataError(f"{self.key}: several images are named {', '.join(repeated)}.")

    @property
    def key(self) -> str:
        """Key of the result, such as ``"AIM-500/box"``."""
        return f"{self.dataset}/{self.prompt}" if self.prompt else self.dataset

    @property
    def scores(self) -> dict[str, float]:
        """Metric to raw mean over the images."""
        return {key: float(np.mean([i.scores[key] for i in self.images])) for key in METRICS}


def write_result(result: EvaluationResult, folder: str | Path) -> None:
    """Write ``scores.csv``, one line per image, and ``summary.json``.

    Raises:
        OutputError: The folder is not writable.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["name", *METRICS, "height", "width", *_PATHS])
    for image in result.images:
        values = [repr(image.scores[key]) for key in METRICS]
        paths = [getattr(image, name) for name in _PATHS]
        writer.writerow([image.name, *values, image.height, image.width, *paths])
    write_text(Path(folder) / SCORES, table.getvalue())
    summary = {
        **{name: getattr(result, name) for name in _HEADER},
        "num_images": len(result.images),
        "units": "raw: MSE and MAD plain, SAD, Grad and Conn / 1000",
        "scores": result.scores,
        "info": dict(result.info),
        "versions": versions(),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_text(Path(folder) / SUMMARY, f"{json.dumps(summary, indent=1, default=str)}\n")


def read_result(folder: str | Path) -> EvaluationResult:
    """Read the files of `write_result`; the recorded versions become part of ``info``.

    Raises:
        MissingFileError: A file is missing.
        DataError: A file is damaged, or the two files belong to different results.
    """
    folder = Path(folder)
    path = folder / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        # Earlier versions wrote num_pictures.
        count = summary["num_images" if "num_images" in summary else "num_pictures"]
        info = {name: str(value) for name, value in summary["info"].items()}
        info["versions"] = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
        header = {name: summary[name] for name in _HEADER}
        for name, kind in _HEADER.items():
            if not isinstance(header[name], kind):
                raise DataError(f"{path}: {name} has the wrong type; got {header[name]!r:.80}.")
        path = folder / SCORES
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            images = [_parse_row(row, folder) for row in csv.DictReader(file)]
    except DataError:  # also a ValueError
        raise
    except OSError as error:
        raise read_error(error.filename, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"{path} is damaged, or was not written by `test` or `score`.") from error
    if count != len(images):
        raise DataError(f"{folder}: {SUMMARY} lists {count} images, {SCORES} has {len(images)}.")
    try:
        return EvaluationResult(images=images, info=info, **header)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error


def _parse_row(row: Mapping[str, str], folder: Path) -> ImageScore:
    image = ImageScore(
        name=row["name"],
        height=int(row["height"]),
        width=int(row["width"]),
        scores={key: float(row[key]) for key in METRICS},
        **{name: row.get(name) or "" for name in _PATHS},
    )
    if not all(map(math.isfinite, image.scores.values())):
        raise DataError(f"{folder / SCORES}: a score of {image.name} is not finite.")
    # The folder may have been moved, or the paths may be relative to another one.
    matte = folder / MATTES / f"{image.name}.png"
    return replace(image, pred_path=str(matte)) if matte.is_file() else image


def find_results(folder: str | Path) -> list[Path]:
    """List the folders with a result at or below a folder, sorted."""
    return sorted(path.parent for path in Path(folder).rglob(SUMMARY))


@cache
def versions() -> dict[str, str]:
    """Return the versions of the software that scores depend on."""
    found = {"python": platform.python_version(), "opencv": cv2.__version__}
    for package in ("SDMatte", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    commit = _describe_commit()
    return {**found, "commit": commit} if commit else found


def _describe_commit() -> str:
    """Return the commit of this file's checkout, with ``-dirty`` if changed; "" if unknown."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # read only
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
