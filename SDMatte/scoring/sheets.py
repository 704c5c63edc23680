"""Images of a result: maps of its errors, and a sheet of its worst and best mattes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from SDMatte.errors import DataError
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.images.sheets import contact_sheet
from SDMatte.scoring.results import ERRORS, EvaluationResult, ImageScore
from SDMatte.scoring.workers import Workers

ERROR_LEGEND = "red: too high, blue: too low"


def error_map(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Draw the errors of a matte: red where it is too high, blue where it is too low.

    Args:
        pred: Matte ``[H, W]``, floating point in [0, 1].
        true: True alpha, likewise.

    Returns:
        uint8 ``[H, W, 3]``, black where both agree.
    """
    error = np.rint(255 * (pred.astype(np.float32) - true))  # [0, 1] -> [-255, 255]
    high, low = np.clip(error, 0, 255), np.clip(-error, 0, 255)
    # Some green makes the blue as bright as the red.
    return np.stack([high, low // 2, low], axis=2).astype(np.uint8)


def write_error_maps(
    images: Iterable[ImageScore], output_dir: str | Path, num_workers: int = 0
) -> None:
    """Write the `error_map` of each image to ``errors/``, under the name of the matte.

    Args:
        images: The images; their mattes must be on disk.
        output_dir: The folder of the result.
        num_workers: See `SDMatte.scoring.workers.Workers`.

    Raises:
        DataError: A matte was not written, or a file is unreadable.
        OutputError: The folder is not writable.
    """
    with Workers(num_workers, collect=lambda _: None) as workers:
        for image in images:
            path = Path(output_dir) / ERRORS / f"{image.name}.png"
            workers.submit(_write_error_map, image, path)


def _write_error_map(image: ImageScore, path: Path) -> None:
    write_image(path, error_map(*_read_pair(image)))


def write_worst_and_best(
    result: EvaluationResult, path: str | Path, *, num_each: int = 4, tile: int = 256
) -> Path:
    """Write a contact sheet of the images with the largest and the smallest SAD, one row each.

    The columns are the image (black if its path is unknown, left out if all are), the truth, the
    prediction and the `error_map`.

    Args:
        result: The result; its mattes must be on disk.
        path: Image file to write.
        num_each: Number of worst and of best images.
        tile: Width and height of a cell in pixels.

    Raises:
        DataError: A matte was not written, or a file is unreadable.
        OutputError: The file is not writable.
    """
    ranked = sorted(result.images, key=lambda i: (-i.scores["SAD"], i.name))
    chosen = ranked[:num_each] + ranked[num_each:][-num_each:]
    with_image = any(image.image_path for image in chosen)
    labels = []
    for image in chosen:
        names = [image.name, "truth"] if with_image else [f"{image.name}, truth"]
        labels += [*names, f"prediction, SAD {image.scores['SAD']:.2f}", ERROR_LEGEND]
    cells = (cell for image in chosen for cell in _row(image, with_image))
    columns = 4 if with_image else 3
    return write_image(path, contact_sheet(cells, labels, columns=columns, tile=tile))


def _row(image: ImageScore, with_image: bool) -> list[np.ndarray]:
    pred, true = _read_pair(image)
    row = [true, pred, error_map(pred, true)]
    if not with_image:
        return row
    return [read_image(image.image_path) if image.image_path else np.zeros_like(true), *row]


def _read_pair(image: ImageScore) -> tuple[np.ndarray, np.ndarray]:
    if not image.pred_path:
        raise DataError(f"The matte of {image.name} was not written, so it cannot be drawn.")
    pred, true = read_alpha(image.pred_path), read_alpha(image.alpha_path)
    if true.shape != pred.shape:
        raise DataError(f"{image.pred_path} and {image.alpha_path} differ in size.")
    return pred, true
