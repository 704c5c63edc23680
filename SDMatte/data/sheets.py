"""Contact sheets of data: the files of a set, and samples as training gets them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from SDMatte.data.dataset import MattingDataset
from SDMatte.data.listing import Sample
from SDMatte.images.io import read_alpha, read_image
from SDMatte.images.sheets import contact_sheet

_DIM = 0.35
_YELLOW = (255, 210, 0)


def source_sheet(
    samples: Sequence[Sample], root: Path, count: int = 24, columns: int = 8, tile: int = 160
) -> np.ndarray:
    """Draw ``count`` evenly spaced samples, which must be readable: each image beside its alpha.

    Returns:
        uint8 ``[H, columns * tile, 3]``.
    """
    distinct = list({sample.alpha: sample for sample in samples}.values())
    indices = np.linspace(0, len(distinct) - 1, min(count, len(distinct))).round().astype(int)
    chosen = [distinct[index] for index in indices]

    def tiles() -> Iterator[np.ndarray]:
        for sample in chosen:
            yield read_image(root / sample.image)
            yield read_alpha(root / sample.alpha)

    labels = [text for sample in chosen for text in (Path(sample.alpha).name, "")]
    return contact_sheet(tiles(), labels, columns, tile)


def sample_sheet(
    dataset: MattingDataset, keys: Iterable[int | tuple[int, int]], tile: int = 192
) -> np.ndarray:
    """Draw samples as the model gets them, one per row.

    The columns are the image, the box, the ten points, the mask, the trimap and the alpha. The
    image is dimmed where a prompt's map is 0; coordinates are drawn in yellow.

    Returns:
        uint8 ``[H, 6 * tile, 3]``.
    """
    rows = [_draw(dataset[key]) for key in keys]
    labels = [label for row in rows for label in row]
    return contact_sheet(
        [cell for row in rows for cell in row.values()], labels, columns=6, tile=tile
    )


def _draw(sample: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the cells of a sample by label, uint8 ``[H, W, 3]`` or float32 ``[H, W]``."""
    planes = {name: (sample[name].numpy() + 1) / 2 for name in ("image", "trimap", "alpha")}
    image = (planes["image"].transpose(1, 2, 0) * 255).round().astype(np.uint8, order="C")
    height, width = image.shape[:2]
    stroke = max(1, height // 128)

    def lit(name: str) -> np.ndarray:
        lit_by = (sample[name][0].numpy()[..., None] + 1) / 2  # [-1, 1] -> [0, 1]
        return (image * (_DIM + (1 - _DIM) * lit_by)).round().astype(np.uint8)

    def corners(name: str) -> list[tuple[int, int]]:
        pixels = sample[name].numpy().reshape(-1, 2) * (width, height)
        return [(x, y) for x, y in pixels.round().astype(int).tolist()]

    box, points, mask = lit("bbox_mask"), lit("point_mask"), lit("mask")
    cv2.rectangle(box, *corners("bbox_coords"), _YELLOW, stroke)
    cv2.rectangle(mask, *corners("mask_coords"), _YELLOW, stroke)
    if (sample["point_mask"] > -1).any():
        for point in corners("point_coords"):
            cv2.circle(points, point, 2 * stroke, _YELLOW, -1)
    kind = "transparent" if sample["is_trans"] else "opaque"
    return {
        f"{sample['image_name']} ({sample['dataset']})": image,
        "box": box,
        "points": points,
        "mask": mask,
        "trimap": planes["trimap"][0],
        f"alpha, {kind}": planes["alpha"][0],
    }
