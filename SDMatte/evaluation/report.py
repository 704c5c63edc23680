"""Results of an evaluation on disk and on screen: CSV, JSON, Markdown, contact sheets.

Everything stored is raw (MSE and MAD plain, as in the paper's tables); only
:func:`score_table` with ``display=True`` multiplies, and says so in its heading.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from SDMatte.errors import DataError
from SDMatte.evaluation.metrics import METRICS
from SDMatte.evaluation.protocols import display_name, get_protocol, to_display
from SDMatte.image_io import read_alpha, read_image, write_image

PUBLISHED_NOTE = "published, not measured here"
_LABEL_HEIGHT = 18


@dataclass(frozen=True)
class PictureScore:
    """What is kept of one scored picture: numbers and paths, no pixels.

    Attributes:
        name: Stem of the alpha's file, also of the matte written.
        height: Height of the picture.
        width: Width of the picture.
        scores: Metric -> raw value.
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
    pictures: Sequence[PictureScore]
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
            "num_pictures": len(self.pictures),
            "units": "raw: MSE and MAD plain, SAD, Grad and Conn / 1000",
            "scores": self.scores,
            "info": dict(self.info),
            "versions": versions(),
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version(), "opencv": cv2.__version__}
    for package in ("SDMatte", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def write_report(result: EvaluationResult, output_dir: str | Path) -> Path:
    """Writes ``scores.csv``, ``summary.json`` and ``summary.md``, each in one piece.

    Returns:
        The folder.

    Raises:
        DataError: The folder cannot be written to.
    """
    output_dir = Path(output_dir)
    _write_text(output_dir / "scores.csv", _to_csv(result.pictures))
    summary = json.dumps(result.summary(), indent=1, default=str)
    _write_text(output_dir / "summary.json", f"{summary}\n")
    _write_text(output_dir / "summary.md", summary_markdown(result))
    return output_dir


def score_table(rows: Mapping[str, Mapping[str, float]], display: bool = False) -> str:
    """A Markdown table of scores.

    Args:
        rows: Label -> metric -> raw value; a missing metric leaves its cell empty.
        display: Whether to multiply MSE and MAD by 1000, as the command line does.
    """
    keys = list(METRICS)
    heads = [display_name(k) if display else k for k in keys]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(keys)]
    for label, scores in rows.items():
        shown = to_display(dict(scores)) if display else scores
        digits = {k: 2 if display or k not in ("MSE", "MAD") else 5 for k in keys}
        cells = [f"{shown[k]:.{digits[k]}f}" if k in shown else "" for k in keys]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summary_markdown(result: EvaluationResult) -> str:
    """The summary for people: the scores, how they came about, the published ones beside them."""
    protocol = get_protocol(result.protocol)
    facts = {
        "protocol": f"{protocol.name} ({protocol.description})",
        "pixels": "unknown ones of the trimaps" if result.trimap_restricted else "all",
        "pictures": len(result.pictures),
        "prompt": result.prompt or "unknown",
        "prompt seed": "none" if result.prompt_seed is None else result.prompt_seed,
        "model": result.model or "unknown",
        **result.info,
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
    }
    text = f"# {result.key}\n\n"
    text += score_table({result.model or "prediction": result.scores})
    text += "\nMSE and MAD plain; SAD, Grad and Conn / 1000.\n\n"
    text += "".join(f"- {key}: {value}\n" for key, value in facts.items())
    compared = published_comparison(result)
    return f"{text}\n{compared}" if compared else text


@cache
def published_results() -> tuple[dict[str, Any], ...]:
    """The paper's tables: ``dataset``, ``model``, ``prompt`` and raw metrics (not all of them).

    They have been published and not been measured by this project.
    """
    path = Path(__file__).with_name("published_results.json")
    return tuple(json.loads(path.read_text(encoding="utf-8"))["results"])


def published_comparison(result: EvaluationResult) -> str:
    """A Markdown table of a result, the published ones of its set and prompt, and differences.

    Returns:
        An empty string where nothing was published for the set and prompt.
    """
    found = [
        row
        for row in published_results()
        if row["dataset"] == result.dataset and row["prompt"] == result.prompt
    ]
    if not found:
        return ""
    own, scores = result.model or "this run", result.scores
    rows = {f"{own} (this run)": scores}
    differences = []
    for row in found:
        known = {key: row[key] for key in METRICS if key in row}
        rows[f"{row['model']} ({PUBLISHED_NOTE})"] = known
        cells = ", ".join(f"{k} {100 * (scores[k] / v - 1):+.1f} %" for k, v in known.items())
        differences.append(f"- {own} against {row['model']} ({PUBLISHED_NOTE}): {cells}\n")
    text = f"## Beside the paper ({PUBLISHED_NOTE})\n\n{score_table(rows)}\n{''.join(differences)}"
    if result.protocol != "official" or result.trimap_restricted:
        text += (
            "\nThe published numbers follow the official protocol over all pixels; "
            "those of this run do not, so that the differences mean little.\n"
        )
    return text


def contact_sheet(
    result: EvaluationResult,
    path: str | Path,
    *,
    metric: str = "SAD",
    num_each: int = 4,
    tile: int = 256,
) -> Path:
    """Writes a picture of the worst and the best results, a row each.

    The columns are the image (where its path is known), the truth, the prediction and the
    absolute error.

    Args:
        result: Its mattes must be on disk.
        path: Where to write, such as ``sheet.png``.
        metric: What to sort by.
        num_each: How many worst, and how many best.
        tile: Width and height of a cell in pixels.

    Raises:
        DataError: No mattes were written, or a file cannot be read.
    """
    ranked = sorted(result.pictures, key=lambda p: (-p.scores[metric], p.name))
    if not all(p.pred_path for p in ranked):
        raise DataError(f"No contact sheet of {result.key}: its mattes were not written.")
    chosen = ranked[:num_each] + ranked[num_each:][-num_each:]
    rows = [_sheet_row(p, metric, tile) for p in chosen]
    return write_image(path, np.concatenate(rows))


def _sheet_row(picture: PictureScore, metric: str, tile: int) -> np.ndarray:
    """One row of a contact sheet, uint8 ``[tile + label, 4 tile, 3]``."""
    true, pred = read_alpha(picture.alpha_path), read_alpha(picture.pred_path)
    if true.shape != pred.shape:
        raise DataError(f"{picture.pred_path} and {picture.alpha_path} differ in size.")
    gray = [(255 * a).astype(np.uint8) for a in (true, pred, np.abs(true - pred))]
    cells = [np.repeat(a[..., None], 3, axis=2) for a in gray]
    image = read_image(picture.image_path) if picture.image_path else np.zeros_like(cells[0])
    row = np.concatenate([_fit(cell, tile) for cell in (image, *cells)], axis=1)
    label = np.zeros((_LABEL_HEIGHT, row.shape[1], 3), np.uint8)
    scores = to_display(picture.scores)
    text = f"{picture.name}  {display_name(metric)} {scores[metric]:.2f}   image|truth|pred|error"
    cv2.putText(label, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255,) * 3, 1, cv2.LINE_AA)
    return np.concatenate([label, row])


def _fit(picture: np.ndarray, tile: int) -> np.ndarray:
    """Shrinks or grows a picture into a square cell, keeping its shape."""
    height, width = picture.shape[:2]
    scale = tile / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    cell = np.full((tile, tile, 3), 64, np.uint8)
    cell[: size[1], : size[0]] = small
    return cell


def _to_csv(pictures: Sequence[PictureScore]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", *METRICS, "height", "width", "alpha_path", "pred_path"])
    for p in pictures:
        values = [repr(p.scores[key]) for key in METRICS]
        writer.writerow([p.name, *values, p.height, p.width, p.alpha_path, p.pred_path])
    return buffer.getvalue()


def _write_text(path: Path, text: str) -> None:
    """Writes a file in one piece: a reader sees the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}.") from error
