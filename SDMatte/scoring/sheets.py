"""Images of results: error maps and contact sheets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.images.sheets import contact_sheet
from SDMatte.scoring.results import ERRORS, EvaluationResult, ImageScore
from SDMatte.scoring.workers import Workers


def error_map(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Draw the errors of a matte: red where it is too high, blue where it is too low.

    Both alphas are ``[H, W]``, floating point in [0, 1].

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
    """Write the `error_map` of each matte on disk to ``errors/`` of a folder.

    Raises:
        DataError: A file is unreadable.
        OutputError: The folder is not writable.
    """
    with Workers(num_workers, collect=lambda _: None) as workers:
        for image in images:
            path = Path(output_dir) / ERRORS / f"{image.name}.png"
            workers.submit(_write_error_map, image, path)


def _write_error_map(image: ImageScore, path: Path) -> None:
    write_image(path, error_map(read_alpha(image.pred_path), read_alpha(image.alpha_path)))


def write_worst_and_best(
    result: EvaluationResult, path: str | Path, *, num_each: int = 4, tile: int = 256
) -> Path:
    """Write a contact sheet of the ``num_each`` images with the largest and the smallest SAD."""
    ranked = sorted(result.images, key=lambda i: (-i.scores["SAD"], i.name))
    chosen = ranked[:num_each] + ranked[num_each:][-num_each:]
    return write_sheet([{"prediction": image} for image in chosen], path, tile, with_errors=True)


def write_sheet(
    rows: Sequence[Mapping[str, ImageScore]], path: str | Path, tile: int, with_errors: bool = False
) -> Path:
    """Write a contact sheet with image, truth and mattes in each row.

    The column of images is left out if no image is known; a single missing image is black.

    Args:
        rows: For each image, scores by the label of the matte.
        path: Image file to write.
        tile: Width and height of a cell in pixels.
        with_errors: Whether an `error_map` follows each matte.

    Raises:
        DataError: A file is unreadable.
        OutputError: The file is not writable.
    """
    firsts = [next(iter(row.values())) for row in rows]
    with_image = any(first.image_path for first in firsts)
    labels: list[str] = []
    for first, row in zip(firsts, rows, strict=True):
        labels += [first.name, "truth"] if with_image else [f"{first.name}, truth"]
        for label, image in row.items():
            labels.append(f"{label}, SAD {image.scores['SAD']:.2f}")
            labels += ["red: too high, blue: too low"] if with_errors else []

    def cells() -> Iterator[np.ndarray]:
        for first, row in zip(firsts, rows, strict=True):
            if with_image:
                known = first.image_path and Path(first.image_path).is_file()
                yield read_image(first.image_path) if known else np.zeros((1, 1))
            true = read_alpha(first.alpha_path)
            yield true
            for image in row.values():
                pred = read_alpha(image.pred_path)
                yield pred
                if with_errors:
                    yield error_map(pred, true)

    sheet = contact_sheet(cells(), labels, columns=len(labels) // len(rows), tile=tile)
    return write_image(path, sheet)
