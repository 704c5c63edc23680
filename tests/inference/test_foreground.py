"""Foreground colors, cutouts and composites."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pymatting
import pytest
from PIL import Image

from SDMatte.errors import DataError
from SDMatte.inference.foreground import estimate_foreground
from SDMatte.inference.multilevel import estimate
from SDMatte.inference.result import MatteResult

FORE, BACK = (200, 60, 30), (20, 160, 90)


@pytest.fixture(scope="module")
def soft():
    """A red disc with a soft edge on green: image and alpha."""
    disc = np.zeros((120, 160), np.float32)
    cv2.circle(disc, (80, 60), 30, 1.0, -1)
    alpha = cv2.GaussianBlur(disc, (0, 0), 5)
    alpha[alpha < 0.01] = 0
    alpha[alpha > 0.995] = 1
    image = alpha[..., None] * FORE + (1 - alpha[..., None]) * BACK
    return np.round(image).astype(np.uint8), alpha


def test_background_colors_are_removed(soft):
    image, alpha = soft
    colors = estimate_foreground(image, alpha)
    edge = (alpha > 0.1) & (alpha < 0.9)
    raw = np.abs(image[edge].astype(float) - FORE).mean()
    error = np.abs(colors[edge].astype(float) - FORE).mean()
    assert raw > 40 and error < 4
    np.testing.assert_array_equal(colors[alpha == 1], image[alpha == 1])
    assert not colors[:5].any()  # the background is not revealed


def test_a_composite_on_its_own_background_is_the_image(soft):
    image, alpha = soft
    result = MatteResult(image, alpha, "box")
    again = result.composite(BACK)
    assert np.abs(again.astype(int) - image).mean() < 1
    rgba = result.cutout()
    assert rgba.dtype == np.uint8 and rgba.shape == (120, 160, 4)
    np.testing.assert_array_equal(rgba[..., 3], np.round(alpha * 255))
    np.testing.assert_array_equal(rgba[..., :3], result.foreground)
    premultiplied = result.cutout(premultiplied=True)
    expected = result.foreground * alpha[..., None]
    assert np.abs(premultiplied[..., :3] - expected).max() <= 0.51


@pytest.mark.parametrize("hw", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_small_images(hw):
    image = np.full((*hw, 3), 90, np.uint8)
    for value in (0.0, 0.5, 1.0):
        colors = estimate_foreground(image, np.full(hw, value, np.float32))
        assert colors.shape == (*hw, 3)
        assert np.abs(colors.astype(int) - (90 if value else 0)).max() <= 1


def test_backgrounds_are_colors_or_images(soft, tmp_path):
    image, _ = soft
    empty = MatteResult(image, np.zeros((120, 160), np.float32), "box")
    for color in ("#0a141e", (10, 20, 30), [10, 20, 30], "rgb(10, 20, 30)"):
        assert (empty.composite(color) == (10, 20, 30)).all()
    stripes = np.zeros((50, 200, 3), np.uint8)
    stripes[:, 100:] = 255
    path = tmp_path / "white.png"  # a file takes precedence over a color of that name
    Image.fromarray(stripes).save(path)
    for background in (stripes, Image.fromarray(stripes), path, str(path)):
        shown = empty.composite(background)
        assert not shown[:, :70].any() and (shown[:, 90:] == 255).all()


@pytest.mark.parametrize(
    ("background", "sentence"),
    [
        ("nowhere.png", "neither a file nor a color such as white"),
        ("x" * 5000, "neither a file nor a color"),
        ("x\0", "neither a file nor a color"),
        ("rgb(300, 0, 0)", "neither a file nor a color"),
        ("#ff000000", "neither a file nor a color"),
        ((1, 2), "three integers"),
        ((1, 2, 256), "three integers"),
        ((0.5, 0.5, 0.5), "three integers"),
        (None, "The image is a NoneType"),
    ],
)
def test_invalid_backgrounds(soft, background, sentence):
    with pytest.raises(DataError, match=sentence):
        MatteResult(*soft, "box").composite(background)


@pytest.mark.parametrize("hw", [(120, 160), (77, 31), (2, 9)])
def test_colors_are_those_of_pymatting(hw):
    rng = np.random.default_rng(0)
    image = rng.random((*hw, 3), np.float32)
    alpha = cv2.resize(rng.random((5, 5), np.float32) * 3 - 1, hw[::-1]).clip(0, 1)
    expected = pymatting.estimate_foreground_ml(image, alpha, n_big_iterations=4)
    np.testing.assert_array_equal(estimate(image, alpha), expected)


def test_threads_agree(soft):
    image, alpha = soft
    expected = estimate_foreground(image, alpha)
    with ThreadPoolExecutor(4) as pool:
        for colors in pool.map(lambda _: estimate_foreground(image, alpha), range(8)):
            np.testing.assert_array_equal(colors, expected)
