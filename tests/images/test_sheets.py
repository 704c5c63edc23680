"""Contact sheets: positions of images and labels."""

import numpy as np
import pytest

from SDMatte.errors import ConfigError
from SDMatte.images.sheets import PAGE, contact_sheet, fit, to_rgb

LABEL = 18


def test_tiles_fill_rows_and_the_rest_is_blank():
    values = (10, 20, 30, 40)
    sheet = contact_sheet([np.full((20, 20, 3), v, np.uint8) for v in values], columns=3, tile=32)
    assert sheet.shape == (64, 96, 3) and sheet.dtype == np.uint8
    centers = sheet[16::32, 16::32, 0]
    assert centers.tolist() == [[10, 20, 30], [40, PAGE, PAGE]]


def test_rows_without_labels_have_no_label_line():
    tiles = [np.zeros((8, 8))] * 4
    assert len(contact_sheet(tiles, columns=2, tile=32)) == 64
    assert len(contact_sheet(tiles, ["", "", "b"], columns=2, tile=32)) == 64 + LABEL
    assert len(contact_sheet(tiles, ["a", "", "b", ""], columns=2, tile=32)) == 64 + 2 * LABEL


def test_labels_are_above_their_images():
    long = "a very long name of a file " * 9
    sheet = contact_sheet([np.zeros((8, 8))] * 3, ["", long, "ä"], columns=3, tile=48)
    inked = (sheet[:LABEL] < PAGE - 50).any(axis=(0, 2))
    assert [inked[i : i + 48].any() for i in (0, 48, 96)] == [False, True, True]
    assert inked[48:96].sum() >= 15  # shortened


@pytest.mark.parametrize("name", ["new\nline.png", "caf\udce9.png", "\0\t\x7f"])
def test_unprintable_names(name):
    sheet = contact_sheet([np.zeros((8, 8))], [name], columns=1, tile=96)
    assert (sheet[:LABEL] < PAGE - 50).any()


def test_generators_are_read_one_by_one():
    held = []

    def tiles():
        for value in (1, 2, 3):
            held.append(value)
            yield np.full((4, 4), value, np.uint8)

    assert contact_sheet(tiles(), columns=3, tile=16)[8, 8::16, 0].tolist() == [1, 2, 3]
    assert held == [1, 2, 3]


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (np.full((5, 9), 0.2), 51),
        (np.full((5, 9), True), 255),
        (np.full((5, 9), 7, np.uint8), 7),
        (np.full((5, 9, 3), 1.0, np.float32), 255),
    ],
)
def test_to_rgb(image, value):
    rgb = to_rgb(image)
    assert rgb.shape == (5, 9, 3) and rgb.dtype == np.uint8 and (rgb == value).all()


@pytest.mark.parametrize("shape", [(10, 40), (40, 10), (1, 300), (300, 300)])
def test_fit_keeps_the_aspect(shape):
    cell = fit(np.zeros(shape, np.uint8), 32)
    rows, columns = (np.flatnonzero((cell == 0).all(axis=2).any(axis=a)) for a in (1, 0))
    scale = 28 / max(shape)
    assert len(rows) == max(1, round(shape[0] * scale))
    assert len(columns) == max(1, round(shape[1] * scale))
    for covered in (rows, columns):  # centered
        assert abs((covered[0] + covered[-1]) / 2 - 15.5) <= 0.5


def test_empty_sheets_are_refused():
    with pytest.raises(ConfigError, match="at least one image"):
        contact_sheet([])
    with pytest.raises(ConfigError, match="0 columns"):
        contact_sheet([np.zeros((4, 4))], columns=0)
