"""Resizing, windows and conversion to tensors."""

import numpy as np
import pytest
import torch

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


def test_resize_by_hand():
    # The centers of 2 out of 4 pixels lie between pixels 0, 1 and 2, 3.
    row = np.array([[0, 10, 20, 40]], np.uint8)
    np.testing.assert_allclose(resize_bilinear(np.repeat(row, 4, 0), 2), [[5, 30]] * 2, rtol=1e-6)
    # One out of three is the middle pixel: nothing is smoothed.
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
def test_grid_equals_the_resize(shape, channels):
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
def test_grid_is_exact_in_large_images(length, size):
    """float32 positions would be off by 0.0005 pixels there."""
    array = np.random.default_rng(0).random((9, length), np.float32)
    resized = resize_by_grid(array, Window.whole(array.shape), (1, size))
    np.testing.assert_allclose(resized, resize_bilinear(array, (1, size)), atol=2e-6)


@pytest.mark.parametrize("window", [Window(3, 5, 90, 90), Window(20, 0, 20, 20)])
def test_grid_of_a_window_equals_the_resize_of_the_part(window):
    array = np.random.default_rng(0).random((97, 131), np.float32)
    part = array[window.top :, window.left :][: window.height, : window.width]
    np.testing.assert_array_equal(window.cut(array), part)
    resized = resize_by_grid(array, window, 32)
    np.testing.assert_allclose(resized, resize_bilinear(part, 32), atol=2e-6)


def test_grid_reads_few_pixels():
    grid = BilinearGrid(Window(100, 0, 2000, 3000), 32)
    assert len(grid.rows) == len(grid.columns) == 64
    assert grid.rows.min() >= 100 and grid.rows.max() < 2100


def test_window_at_another_size():
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


def test_given_trimaps_are_resized_by_nearest_neighbor():
    trimap = np.array([[0, 0, 128, 128], [0, 0, 128, 128], [255] * 4, [255] * 4], np.uint8)
    np.testing.assert_array_equal(resize_trimap(trimap, 2), [[0, 0.5], [1, 1]])
    near = resize_trimap(np.array([[0, 1, 127, 129, 254, 255]] * 6, np.uint8), 6)
    np.testing.assert_array_equal(near[0], [0, 0, 0.5, 0.5, 1, 1])
    assert near.dtype == np.float32


def test_tensor():
    image = np.random.default_rng(0).random((2, 5, 3), np.float32)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 5) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    np.testing.assert_allclose(tensor.permute(1, 2, 0), image * 2 - 1, atol=1e-6)
    assert to_tensor(np.array([[0, 0.5, 1]], np.float32)).tolist() == [[[-1, 0, 1]]]
