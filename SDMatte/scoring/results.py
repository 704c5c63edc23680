"""What an evaluation comes to: numbers by picture, their means, and how they are kept on disk.

Everything stored is raw: MSE and MAD plain, as in the paper's tables.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
SCORES, SUMMARY, PROGRESS = "scores.csv", "summary.json", "progress.jsonl"


@dataclass(frozen=True)
class ImageScore:
    """What is kept of one picture: numbers and paths, no pixels.

    Attributes:
        name: Stem of the alpha's file, also of the matte written, in Unicode NFC.
        height: Height of the picture.
        width: Width of the picture.
        scores: Metric -> raw value; empty for a matte that is only predicted.
        alpha_path: The truth.
        pred_path: The matte on disk, empty if none was written.
        image_path: The picture, empty if unknown.
    """

    name: str
    height: int
    width: int
    scores: dict[str, float]
    alpha_path: str
    pred_path: str = ""
    image_path: str = ""

    def __post_init__(self) -> None:
        """Brings the name to NFC: the same set may be spelled otherwise on another machine."""
        object.__setattr__(self, "name", unicodedata.normalize("NFC", self.name))

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of one set under one prompt.

    Attributes:
        dataset: Name of the set.
        protocol: ``"official"`` or ``"corrected"``.
        pictures: One entry a picture.
        prompt: Short name of the prompt, empty where it is not known.
        model: Name of the model or method.
        prompt_seed: Seed of the drawn prompts, None where nothing was drawn.
        trimap_restricted: Whether only the trimaps' unknown pixels count.
        info: Anything else worth keeping (checkpoint, its hash, config ...), as JSON or text.
    """

    dataset: str
    protocol: str
    pictures: Sequence[ImageScore]
    prompt: str = ""
    model: str = ""
    prompt_seed: int | None = None
    trimap_restricted: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what no average should be taken of.

        Raises:
            DataError: There is no picture, or a name occurs twice.
        """
        names = [p.name for p in self.pictures]
        if not names:
            raise DataError(f"There is no picture to average over in {self.key}.")
        if len(set(names)) < len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise DataError(f"These names occur more than once in {self.key}: {', '.join(twice)}.")

    @property
    def key(self) -> str:
        """``"AIM-500/box"``: what results are filed under."""
        return f"{self.dataset}/{self.prompt}" if self.prompt else self.dataset

    @property
    def scores(self) -> dict[str, float]:
        """Metric -> raw mean over the pictures."""
        return {key: float(np.mean([p.scores[key] for p in self.pictures])) for key in METRICS}

    def summary(self) -> dict[str, Any]:
        """Everything but the single pictures, as JSON knows it."""
        return {
            "dataset": self.dataset,
            "prompt": self.prompt,
            "prompt_seed": self.prompt_seed,
            "model": self.model,
            "protocol": self.protocol,
            "trimap_restricted": self.trimap_restricted,
            "num_images": len(self.pictures),
            "units": "raw: MSE and MAD plain, SAD, Grad and Conn / 1000",
            "scores": self.scores,
            "info": dict(self.info),
            "versions": versions(),
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def write_result(result: EvaluationResult, folder: str | Path) -> None:
    """Writes ``scores.csv``, a line a picture, and ``summary.json``, each in one piece.

    Raises:
        DataError: The folder cannot be written to.
    """
    write_text(Path(folder) / SCORES, _to_csv(result.pictures))
    summary = json.dumps(result.summary(), indent=1, default=str)
    write_text(Path(folder) / SUMMARY, f"{summary}\n")


def read_result(folder: str | Path) -> EvaluationResult:
    """Reads what `write_result` left; the versions that it was made with are in ``info``.

    Raises:
        MissingFileError: A file is missing.
        DataError: A file is damaged, or the two do not belong together.
    """
    folder = Path(folder)
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        path = folder / SCORES
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            pictures = [_from_row(row, folder) for row in csv.DictReader(file)]
        number, made_with = summary["num_images"], summary["versions"]
        info = {**summary["info"], "versions": ", ".join(f"{k} {v}" for k, v in made_with.items())}
        result = EvaluationResult(
            pictures=pictures,
            info=info,
            **{key: summary[key] for key in ("dataset", "protocol", "prompt", "model")},
            **{key: summary[key] for key in ("prompt_seed", "trimap_restricted")},
        )
    except DataError:  # a ValueError, too
        raise
    except OSError as error:
        raise read_error(error.filename, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{folder} holds no readable scores ({SUMMARY}, {SCORES}): {error!r}."
        ) from error
    if number != len(pictures):
        raise DataError(
            f"{folder}: {SUMMARY} is of {number} pictures, {SCORES} has {len(pictures)}."
        )
    return result


def find_results(folder: str | Path) -> list[Path]:
    """Lists the folders at or below one that hold a result, sorted."""
    return sorted(path.parent for path in Path(folder).rglob(SUMMARY))


@cache
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version(), "opencv": cv2.__version__}
    for package in ("SDMatte", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _commit() -> str:
    """The commit of the checkout that this file is in, ``-dirty`` if changed; or nothing."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # only look
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def code_hash() -> str:
    """The SHA-256 of the package's code, wherever it lies."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_PATHS = ("alpha_path", "pred_path", "image_path")


def _to_csv(pictures: Sequence[ImageScore]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", *METRICS, "height", "width", *_PATHS])
    for p in pictures:
        values = [repr(p.scores[key]) for key in METRICS]
        paths = [getattr(p, name) for name in _PATHS]
        writer.writerow([p.name, *values, p.height, p.width, *paths])
    return buffer.getvalue()


def _from_row(row: Mapping[str, str], folder: Path) -> ImageScore:
    picture = ImageScore(
        name=row["name"],
        height=int(row["height"]),
        width=int(row["width"]),
        scores={key: float(row[key]) for key in METRICS},
        **{name: row.get(name) or "" for name in _PATHS},
    )
    if not all(map(math.isfinite, picture.scores.values())):
        raise ValueError(f"a score of {picture.name} is no finite number")
    # The folder may have been moved, or the paths be relative to another one.
    beside = folder / MATTES / f"{picture.name}.png"
    return replace(picture, pred_path=str(beside)) if beside.is_file() else picture
