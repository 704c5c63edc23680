"""Resizing, trimaps, gray, tensors: data/README.md, steps 3, 4, 8, 9."""

import cv2
import numpy as np
import pytest
import torch

from SDMatte.data.transforms import make_trimap, to_gray
from SDMatte.images.resize import (
    BilinearGrid,
    Window,
    aspect_shape,
    pick,
    resize_bilinear,
    resize_trimap,
    to_tensor,
    unit,
)
from SDMatte.prompts.maps import draw_size, ellipse


class FixedSizes:
    """Stands in for a generator where a test says which sizes are drawn."""

    def __init__(self, *sizes):
        self.sizes = list(sizes)

    def integers(self, low, high):
        size = self.sizes.pop(0)
        assert low <= size < high
        return size


def test_resize_by_hand():
    # Centres of 2 out of 4 pixels lie between pixels 0, 1 and 2, 3.
    row = np.array([[0, 10, 20, 40]], np.uint8)
    np.testing.assert_allclose(resize_bilinear(np.repeat(row, 4, 0), 2), [[5, 30]] * 2, rtol=1e-6)
    # One out of three takes the middle one alone: nothing is smoothed.
    middle = resize_bilinear(np.array([[7, 9, 200]] * 3, np.uint8), 1)
    np.testing.assert_allclose(middle, [[9]], rtol=1e-6)
    assert resize_bilinear(np.zeros((5, 9, 3), np.uint8), 4).shape == (4, 4, 3)


def test_resize_to_any_shape():
    image = np.arange(12, dtype=np.uint8).reshape(2, 6)
    expected = [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]]
    np.testing.assert_allclose(resize_bilinear(image, (2, 3)), expected, rtol=1e-6)
    assert resize_trimap(np.zeros((5, 9), np.uint8), (3, 4)).shape == (3, 4)


def resize_by_grid(array, window, size):
    grid = BilinearGrid(window, size)
    return grid.combine(pick(array, grid.rows, grid.columns))


@pytest.mark.numerics
@pytest.mark.parametrize("shape", [(97, 131), (40, 300), (300, 40), (20, 30), (64, 64), (1, 9000)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_grid_is_the_resize(shape, channels):
    array = np.random.default_rng(0).random((*shape, *channels), np.float32)
    resized = resize_by_grid(array, Window.whole(array.shape), 32)
    np.testing.assert_allclose(resized, resize_bilinear(array, 32), atol=2e-6)


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (1000, 7)])
def test_grid_of_any_shape(size):
    array = np.random.default_rng(0).random((97, 331), np.float32)
    resized = resize_by_grid(array, Window.whole(array.shape), size)
    np.testing.assert_allclose(resized, resize_bilinear(array, size), atol=2e-6)


@pytest.mark.numerics
@pytest.mark.parametrize(("length", "size"), [(9999, 1000), (3001, 512), (13_000, 1000)])
def test_grid_weighs_as_the_resize_does_far_out(length, size):
    """Places as float32 would be wrong by .0005 of a pixel there."""
    array = np.random.default_rng(0).random((9, length), np.float32)
    resized = resize_by_grid(array, Window.whole(array.shape), (1, size))
    np.testing.assert_allclose(resized, resize_bilinear(array, (1, size)), atol=2e-6)


@pytest.mark.parametrize("window", [Window(3, 5, 90, 90), Window(20, 0, 20, 20)])
def test_grid_of_a_window_is_the_resize_of_the_part(window):
    array = np.random.default_rng(0).random((97, 131), np.float32)
    part = array[window.top :, window.left :][: window.height, : window.width]
    np.testing.assert_array_equal(window.cut(array), part)
    resized = resize_by_grid(array, window, 32)
    np.testing.assert_allclose(resized, resize_bilinear(part, 32), atol=2e-6)


def test_grid_reads_few_pixels():
    grid = BilinearGrid(Window(100, 0, 2000, 3000), 32)
    assert len(grid.rows) == len(grid.columns) == 64
    assert grid.rows.min() >= 100 and grid.rows.max() < 2100


def test_window_in_another_size():
    assert Window(10, 20, 30, 40).scaled((100, 200), (50, 50)) == Window(5, 5, 15, 10)
    whole = Window.whole((34, 51, 3))
    assert whole == (0, 0, 34, 51)
    assert whole.scaled((34, 51), (67, 101)) == Window.whole((67, 101))
    assert Window(1, 2, 3, 4).scaled((9, 9), (9, 9)) == Window(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("shape", "size", "multiple", "expected"),
    [
        ((2000, 2000), 1024, 64, (1024, 1024)),
        ((1000, 4000), 1024, 64, (512, 2048)),
        ((4000, 1000), 1024, 64, (2048, 512)),
        ((2000, 3000), 1024, 64, (832, 1280)),  # 836.1 and 1254.1
        ((10, 10_000), 128, 32, (32, 4032)),  # 4.05 becomes one multiple; 4047.7
    ],
)
def test_aspect_shape(shape, size, multiple, expected):
    assert aspect_shape(shape, size, multiple) == expected


def test_unit():
    np.testing.assert_array_equal(
        unit(np.array([[0, 51, 255]], np.uint8)), np.float32([[0, 0.2, 1]])
    )
    floating = np.array([[0.25]], np.float32)
    assert unit(floating) is floating


def test_sizes_are_drawn_with_both_ends():
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
    # The 1e-5 on top lets .95 itself count as foreground, and .05 as background.
    expected = 1 if value >= 0.95 else 0 if value <= 0.05 else 0.5
    assert (trimap == expected).all()


def test_trimap_is_the_literal_formula():
    rng = np.random.default_rng(3)
    alpha = cv2.GaussianBlur((rng.random((80, 90)) > 0.5).astype(np.float32), (0, 0), 6)
    alpha = np.clip((alpha - 0.5) * 40 + 0.5, 0, 1)
    fg = cv2.erode(alpha + np.float32(1e-5), ellipse(5)) > 0.95
    bg = cv2.erode(1 - alpha + np.float32(1e-5), ellipse(4)) > 0.95
    expected = np.where(bg, 0, np.where(fg, 1, 0.5))
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(make_trimap(alpha, FixedSizes(5, 4), (3, 9)), expected)


def test_trimap_sizes_are_all_drawn_alike():
    alpha = np.zeros((4, 80), np.float32)
    alpha[:, 40:] = 1
    rng = np.random.default_rng(0)
    widths = [int((make_trimap(alpha, rng)[0, 40:] == 0.5).sum()) for _ in range(3000)]
    # A size k reaches k // 2 pixels: 15 gives 7, 16 and 17 give 8, ... 28 and 29 give 14.
    counts = np.bincount(widths, minlength=15)
    assert not counts[:7].any() and len(counts) == 15
    np.testing.assert_allclose(counts[7], 200, atol=60)
    np.testing.assert_allclose(counts[8:], 400, atol=85)


def test_given_trimap_by_nearest():
    trimap = np.array([[0, 0, 128, 128], [0, 0, 128, 128], [255] * 4, [255] * 4], np.uint8)
    np.testing.assert_array_equal(resize_trimap(trimap, 2), [[0, 0.5], [1, 1]])
    near = resize_trimap(np.array([[0, 1, 127, 129, 254, 255]] * 6, np.uint8), 6)
    np.testing.assert_array_equal(near[0], [0, 0, 0.5, 0.5, 1, 1])
    assert near.dtype == np.float32


def test_gray():
    image = np.zeros((1, 3, 3), np.float32)
    image[0, 0, 0] = image[0, 1, 1] = image[0, 2, 2] = 1
    gray = to_gray(image)
    np.testing.assert_allclose(gray[0, :, 0], [0.299, 0.587, 0.114], atol=1e-6)
    assert (gray[..., :1] == gray).all() and gray.shape == image.shape


def test_tensor():
    image = np.random.default_rng(0).random((2, 5, 3), np.float32)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 5) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    np.testing.assert_allclose(tensor.permute(1, 2, 0), image * 2 - 1, atol=1e-6)
    assert to_tensor(np.array([[0, 0.5, 1]], np.float32)).tolist() == [[[-1, 0, 1]]]
