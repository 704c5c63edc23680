"""An evaluation for people: tables, summaries, contact sheets, maps of the errors.

Values in tables are raw (MSE and MAD plain, as in the paper's tables); only with
``display=True`` are these two multiplied by 1000, and the heading says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from SDMatte.errors import DataError
from SDMatte.images import sheets as pictures
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.runtime.files import write_text
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.protocols import display_name, get_protocol, to_display
from SDMatte.scoring.results import (
    ERRORS,
    EvaluationResult,
    ImageScore,
    versions,
    write_result,
)
from SDMatte.scoring.tables import Table
from SDMatte.scoring.workers import Workers

PUBLISHED_NOTE = "published, not measured here"
ERROR_LEGEND = "red: too much, blue: too little"


def write_report(result: EvaluationResult, output_dir: str | Path) -> Path:
    """Writes ``scores.csv``, ``summary.json`` and ``summary.md``, each in one piece.

    Returns:
        The folder.

    Raises:
        DataError: The folder cannot be written to.
    """
    output_dir = Path(output_dir)
    write_result(result, output_dir)
    write_text(output_dir / "summary.md", summary_markdown(result))
    return output_dir


def metrics_table(rows: Mapping[str, Mapping[str, float]], display: bool = False) -> Table:
    """A table of scores.

    Args:
        rows: Label -> metric -> raw value; a missing metric leaves its cell empty.
        display: Whether to multiply MSE and MAD by 1000, as the command line does.
    """
    lines = []
    for label, scores in rows.items():
        shown = to_display(dict(scores)) if display else scores
        digits = {k: 2 if display or k not in ("MSE", "MAD") else 5 for k in METRICS}
        lines.append([label, *(f"{shown[k]:.{digits[k]}f}" if k in shown else "" for k in METRICS)])
    return Table(["", *(display_name(k) if display else k for k in METRICS)], lines)


def score_table(rows: Mapping[str, Mapping[str, float]], display: bool = False) -> str:
    """The table of `metrics_table` in Markdown."""
    return metrics_table(rows, display).markdown()


def difference_table(
    rows: Mapping[str, Mapping[str, float]], references: Mapping[str, Mapping[str, float]]
) -> Table:
    """A table of relative differences; below zero is better, for all five metrics.

    Args:
        rows: Label -> metric -> raw value.
        references: Likewise, what each row is compared with; a missing metric leaves its cell
            empty.
    """
    lines = []
    for label, scores in rows.items():
        for name, known in references.items():
            if label != name:
                cells = [_relative(scores.get(k), known.get(k)) for k in METRICS]
                lines.append([f"{label} against {name}", *cells])
    return Table(["", *METRICS], lines)


def _relative(value: float | None, reference: float | None) -> str:
    if value is None or not reference:
        return ""
    return f"{100 * (value / reference - 1):+.1f} %"


def facts(result: EvaluationResult) -> dict[str, str]:
    """How the numbers of a result came about, for people."""
    protocol = get_protocol(result.protocol)
    return {
        "protocol": f"{protocol.name} ({protocol.description})",
        "pixels": "unknown ones of the trimaps" if result.trimap_restricted else "all",
        "pictures": str(len(result.pictures)),
        "prompt": result.prompt or "unknown",
        "prompt seed": "none" if result.prompt_seed is None else str(result.prompt_seed),
        "model": result.model or "unknown",
        **{key: str(value) for key, value in result.info.items()},
    }


def summary_markdown(result: EvaluationResult) -> str:
    """The summary for people: the scores, how they came about, the published ones beside them."""
    known = {**facts(result), "versions": ", ".join(f"{k} {v}" for k, v in versions().items())}
    text = f"# {result.key}\n\n"
    text += score_table({result.model or "prediction": result.scores})
    text += "\nMSE and MAD plain; SAD, Grad and Conn / 1000.\n\n"
    text += "".join(f"- {key}: {value}\n" for key, value in known.items())
    compared = published_comparison(result)
    return f"{text}\n{compared}" if compared else text


@cache
def published_results() -> dict[str, Any]:
    """The paper's tables.

    They have been published and not been measured by this project.

    Returns:
        ``results``: a list of ``dataset``, ``model``, ``prompt`` and raw metrics (not all of
        them); ``num_images``: how many pictures a set has, as far as that is known.
    """
    path = Path(__file__).with_name("published_results.json")
    return json.loads(path.read_text(encoding="utf-8"))


def published_rows(result: EvaluationResult) -> dict[str, dict[str, float]]:
    """The published scores of a result's set and prompt, by label; each label says what they are.

    They may be of other pictures, see `of_published_size`.
    """
    return {
        f"{row['model']} ({PUBLISHED_NOTE})": {key: row[key] for key in METRICS if key in row}
        for row in _published(result)
    }


def of_published_size(result: EvaluationResult) -> bool:
    """Whether a result has as many pictures as the set, not a part or others; or may have.

    If not, there is nothing in differences from the published numbers.
    """
    number = published_results()["num_images"].get(result.dataset)
    return number in (None, len(result.pictures))


def published_caution(result: EvaluationResult) -> str:
    """Says why the published numbers cannot or should not be compared; or nothing."""
    if not _published(result):
        return ""
    number = published_results()["num_images"].get(result.dataset)
    if not of_published_size(result):
        return (
            f"The paper's numbers of {result.dataset} are of {number} pictures, so they cannot be "
            f"compared with these of {len(result.pictures)}."
        )
    cautions = []
    if number is None:
        cautions.append(
            f"Of how many pictures of {result.dataset} the paper's numbers are is not known here; "
            f"those of this run are of {len(result.pictures)}."
        )
    if result.protocol != "official" or result.trimap_restricted:
        cautions.append(
            "The published numbers follow the official protocol over all pixels; those of this run "
            "do not, so that the differences mean little."
        )
    return " ".join(cautions)


def _published(result: EvaluationResult) -> list[dict[str, Any]]:
    return [
        row
        for row in published_results()["results"]
        if row["dataset"] == result.dataset and row["prompt"] == result.prompt
    ]


def published_comparison(result: EvaluationResult) -> str:
    """Markdown tables of a result, the published ones of its set and prompt, and differences.

    Returns:
        Only a sentence where they cannot be compared, and an empty string where nothing was
        published for the set and prompt.
    """
    published, caution = published_rows(result), published_caution(result)
    if not (published and of_published_size(result)):
        return f"{caution}\n" if caution else ""
    own = {f"{result.model or 'prediction'} (this run)": result.scores}
    text = f"## Beside the paper ({PUBLISHED_NOTE})\n\n{score_table({**own, **published})}\n"
    text += difference_table(own, published).markdown()
    return f"{text}\n{caution}\n" if caution else text


def error_map(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Draws where a matte errs: red where it is too high, blue where it is too low.

    Args:
        pred: Matte ``[H, W]``, floating in [0, 1].
        true: True alpha, likewise.

    Returns:
        uint8 ``[H, W, 3]``, black where both agree.
    """
    error = np.rint(255 * (pred.astype(np.float32) - true))  # [0, 1] -> [-255, 255]
    high, low = np.clip(error, 0, 255), np.clip(-error, 0, 255)
    # Some green makes the blue as visible as the red.
    return np.stack([high, low // 2, low], axis=2).astype(np.uint8)


def write_error_maps(
    results: Iterable[ImageScore], output_dir: str | Path, num_workers: int = 0
) -> None:
    """Writes an `error_map` of each picture to ``errors/``, under the matte's name.

    Args:
        results: The pictures; their mattes must be on disk.
        output_dir: The folder of the results.
        num_workers: See `SDMatte.scoring.workers.Workers`.

    Raises:
        DataError: A matte was not written, or a file cannot be read or written.
    """
    workers = Workers(num_workers, collect=lambda path: None)
    try:
        for picture in results:
            path = Path(output_dir) / ERRORS / f"{picture.name}.png"
            workers.submit(_write_error_map, picture, path)
        workers.finish()
    finally:
        workers.close()


def _write_error_map(picture: ImageScore, path: Path) -> None:
    write_image(path, error_map(*_read_pair(picture)))


def contact_sheet(
    result: EvaluationResult,
    path: str | Path,
    *,
    num_each: int = 4,
    tile: int = 256,
) -> Path:
    """Writes a picture of the results with the largest and the smallest SAD, a row each.

    The columns are the image (black where its path is not known; left out if that is so for
    all), the truth, the prediction and the `error_map`.

    Args:
        result: Its mattes must be on disk.
        path: Where to write, such as ``sheet.png``.
        num_each: How many worst, and how many best.
        tile: Width and height of a cell in pixels.

    Raises:
        DataError: No mattes were written, or a file cannot be read.
    """
    ranked = sorted(result.pictures, key=lambda p: (-p.scores["SAD"], p.name))
    chosen = ranked[:num_each] + ranked[num_each:][-num_each:]
    with_image = any(picture.image_path for picture in chosen)
    labels = []
    for picture in chosen:
        names = [picture.name, "truth"] if with_image else [f"{picture.name}, truth"]
        labels += [*names, f"prediction, SAD {picture.scores['SAD']:.2f}", ERROR_LEGEND]
    cells = (cell for picture in chosen for cell in _sheet_row(picture, with_image))
    columns = 4 if with_image else 3
    return write_image(path, pictures.contact_sheet(cells, labels, columns=columns, tile=tile))


def _sheet_row(picture: ImageScore, with_image: bool) -> list[np.ndarray]:
    """A row of a contact sheet: picture, truth, prediction, error."""
    pred, true = _read_pair(picture)
    row = [true, pred, error_map(pred, true)]
    if not with_image:
        return row
    return [read_image(picture.image_path) if picture.image_path else np.zeros_like(true), *row]


def _read_pair(picture: ImageScore) -> tuple[np.ndarray, np.ndarray]:
    """Reads a matte and its truth."""
    if not picture.pred_path:
        raise DataError(f"The matte of {picture.name} was not written, so it cannot be shown.")
    pred, true = read_alpha(picture.pred_path), read_alpha(picture.alpha_path)
    if true.shape != pred.shape:
        raise DataError(f"{picture.pred_path} and {picture.alpha_path} differ in size.")
    return pred, true
