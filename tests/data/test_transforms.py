"""Trimaps and gray images."""

import cv2
import numpy as np
import pytest

from SDMatte.data.transforms import make_trimap, to_gray
from SDMatte.prompts.maps import draw_size, ellipse

IMAGE = np.random.default_rng(0).random((12, 16, 3), np.float32)


class FixedSizes:
    """A generator that draws given sizes."""

    def __init__(self, *sizes):
        self.sizes = list(sizes)

    def integers(self, low, high):
        size = self.sizes.pop(0)
        assert low <= size < high
        return size


def test_sizes_include_both_ends():
    rng = np.random.default_rng(0)
    counts = np.bincount([draw_size(rng, (15, 29)) for _ in range(3000)], minlength=30)
    assert not counts[:15].any() and len(counts) == 30
    np.testing.assert_allclose(counts[15:], 200, atol=60)


def test_trimap_widths_by_hand():
    # Left half background, right half foreground, the edge between columns 49 and 50.
    alpha = np.zeros((100, 100), np.float32)
    alpha[:, 50:] = 1
    trimap = make_trimap(alpha, FixedSizes(15, 29))
    # 15 for the foreground: columns 50 to 56 have background within 7 pixels.
    # 29 for the background: columns 36 to 49 have foreground within 14 pixels.
    expected = np.full(100, 0.5, np.float32)
    expected[57:], expected[:36] = 1, 0
    np.testing.assert_array_equal(trimap, np.tile(expected, (100, 1)))
    assert trimap.dtype == np.float32


def test_trimap_of_an_even_kernel():
    alpha = np.zeros((100, 100), np.float32)
    alpha[:, 50:] = 1
    trimap = make_trimap(alpha, FixedSizes(16, 16))
    # The anchor of 16 is pixel 8: it reaches 8 to the left and 7 to the right.
    expected = np.full(100, 0.5, np.float32)
    expected[58:], expected[:43] = 1, 0
    np.testing.assert_array_equal(trimap[50], expected)


@pytest.mark.parametrize("value", [0.0, 0.04, 0.0500, 0.06, 0.5, 0.94, 0.9500, 0.96, 1.0])
def test_trimap_thresholds(value):
    trimap = make_trimap(np.full((40, 40), value, np.float32), np.random.default_rng(0))
    # Adding 1e-5 makes 0.95 itself foreground, and 0.05 background.
    expected = 1 if value >= 0.95 else 0 if value <= 0.05 else 0.5
    assert (trimap == expected).all()


def test_trimap_equals_the_literal_formula():
    rng = np.random.default_rng(3)
    alpha = cv2.GaussianBlur((rng.random((80, 90)) > 0.5).astype(np.float32), (0, 0), 6)
    alpha = np.clip((alpha - 0.5) * 40 + 0.5, 0, 1)
    fg = cv2.erode(alpha + np.float32(1e-5), ellipse(5)) > 0.95
    bg = cv2.erode(1 - alpha + np.float32(1e-5), ellipse(4)) > 0.95
    expected = np.where(bg, 0, np.where(fg, 1, 0.5))
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(make_trimap(alpha, FixedSizes(5, 4), (3, 9)), expected)


def test_trimap_sizes_are_uniform():
    alpha = np.zeros((4, 80), np.float32)
    alpha[:, 40:] = 1
    rng = np.random.default_rng(0)
    widths = [int((make_trimap(alpha, rng)[0, 40:] == 0.5).sum()) for _ in range(3000)]
    # A size k reaches k // 2 pixels: 15 gives 7, 16 and 17 give 8, ... 28 and 29 give 14.
    counts = np.bincount(widths, minlength=15)
    assert not counts[:7].any() and len(counts) == 15
    np.testing.assert_allclose(counts[7], 200, atol=60)
    np.testing.assert_allclose(counts[8:], 400, atol=85)


def test_gray():
    image = np.zeros((1, 3, 3), np.float32)
    image[0, 0, 0] = image[0, 1, 1] = image[0, 2, 2] = 1
    gray = to_gray(image)
    np.testing.assert_allclose(gray[0, :, 0], [0.299, 0.587, 0.114], atol=1e-6)
    assert (gray[..., :1] == gray).all() and gray.shape == image.shape
