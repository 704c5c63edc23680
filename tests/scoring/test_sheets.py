"""Error maps, and the sheet of the worst and best images."""

from dataclasses import replace

import numpy as np
import pytest

from SDMatte.errors import DataError
from SDMatte.images.io import read_image, write_image
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.results import EvaluationResult, ImageScore
from SDMatte.scoring.sheets import error_map, write_error_maps, write_worst_and_best


@pytest.fixture
def result(tmp_path):
    """Six images with a SAD of 0 to 5: uniform mattes, black truths."""
    images = []
    for i in range(6):
        pred, true = np.full((20, 30), 40 * i, np.uint8), np.zeros((20, 30), np.uint8)
        files = {"truth": true, "pred": pred, "image": np.full((20, 30, 3), 9, np.uint8)}
        paths = [str(write_image(tmp_path / k / f"{i}.png", a)) for k, a in files.items()]
        images.append(ImageScore(f"{i}", 20, 30, dict.fromkeys(METRICS, float(i)), *paths))
    return EvaluationResult("set", "official", images)


def test_error_map_shows_the_sign():
    pred, true = np.array([[1.0, 0.0, 0.4]]), np.array([[0.0, 1.0, 0.4]])
    assert error_map(pred, true).tolist() == [[[255, 0, 0], [0, 127, 255], [0, 0, 0]]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_write_error_maps(tmp_path, result, num_workers):
    write_error_maps(result.images[:3], tmp_path / "out", num_workers)
    found = [read_image(tmp_path / "out" / "errors" / f"{i}.png")[0, 0].tolist() for i in range(3)]
    assert found == [[0, 0, 0], [40, 0, 0], [80, 0, 0]]
    (tmp_path / "pred" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png"):
        write_error_maps(result.images[:3], tmp_path / "out", num_workers)


def test_sheet_shows_worst_then_best(tmp_path, result):
    path = tmp_path / "s.png"
    sheet = read_image(write_worst_and_best(result, path, num_each=2, tile=32))
    label, tile = 18, 32
    assert sheet.shape == (4 * (label + tile), 4 * tile, 3)
    centers = sheet[label + tile // 2 :: label + tile, tile // 2 :: tile, 0]
    assert centers[:, 2].tolist() == [200, 160, 40, 0]  # predictions
    assert centers[:, 3].tolist() == [200, 160, 40, 0]  # errors
    assert centers[:, 0].tolist() == [9] * 4
    few = read_image(write_worst_and_best(result, path, num_each=4, tile=32))
    assert len(few) == 6 * (label + tile)
    bare = replace(result, images=[replace(image, image_path="") for image in result.images])
    without = read_image(write_worst_and_best(bare, path, num_each=2, tile=32))
    rows = np.vsplit(without, 4), np.vsplit(sheet, 4)
    for row, full in zip(*rows, strict=True):  # equal below the labels, but for the first column
        assert np.array_equal(row[label:], full[label:, tile:])
