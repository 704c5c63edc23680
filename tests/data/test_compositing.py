"""Composites pixel by pixel: data/README.md, step 2."""

import cv2
import numpy as np
import pytest

from SDMatte.data.compositing import composite
from SDMatte.data.settings import DataSettings

SETTINGS = DataSettings()


def literal(fg, alpha, background, size, duplicate, blur_size, kept):
    """The definition at full size, in double precision."""
    height, width = alpha.shape
    n = 2 if duplicate else 1
    bg = cv2.resize(background, (n * width, height))
    if blur_size:
        bg = cv2.blur(bg, (blur_size, blur_size))
    a = np.hstack([alpha] * n).astype(np.float64)
    image = np.hstack([fg] * n) / 255 * a[..., None] + bg / 255 * (1 - a[..., None])
    if duplicate:
        a[:, (1 - kept) * width : (2 - kept) * width] = 0
    return cv2.resize(image, (size, size)), cv2.resize(a, (size, size))


def sources(height, width):
    rng = np.random.default_rng(0)
    fg = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    background = rng.integers(0, 256, (height * 2 // 3, width + 7, 3), dtype=np.uint8)
    return fg, rng.random((height, width), np.float32), background


@pytest.mark.parametrize("shape", [(150, 200), (33, 20), (64, 64)])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("probability", [0, 1])
def test_equals_the_literal_formula(shape, seed, probability):
    fg, alpha, background = sources(*shape)
    settings = DataSettings(duplicate_prob=probability)
    image, target, hw = composite(fg, alpha, background, 32, np.random.default_rng(seed), settings)
    rng = np.random.default_rng(seed)
    rng.random()
    blur = rng.random() < 0.5
    blur_size = rng.choice([20, 30, 40, 50, 60])
    kept = rng.integers(2) if probability else 0
    expected = literal(fg, alpha, background, 32, probability, blur_size if blur else 0, kept)
    np.testing.assert_allclose(image, expected[0], atol=1e-5)
    np.testing.assert_allclose(target, expected[1], atol=1e-5)
    assert image.dtype == target.dtype == np.float32
    assert hw == (shape[0], shape[1] * (1 + probability))


def test_by_hand():
    # A white object with alpha 1, 0.5 on black; the 4 x 4 result is not resized.
    fg = np.full((4, 2, 3), 255, np.uint8)
    alpha = np.array([[1, 0.5]] * 4, np.float32)
    black = np.zeros((9, 9, 3), np.uint8)
    seen = set()
    for seed in range(20):
        image, target, _ = composite(fg, alpha, black, 4, np.random.default_rng(seed), SETTINGS)
        np.testing.assert_allclose(image[..., 0], [[1, 0.5, 1, 0.5]] * 4, rtol=1e-6)
        seen.add(tuple(target[0].tolist()))
    assert seen == {(1, 0.5, 0, 0), (0, 0, 1, 0.5)}


def test_choices_have_their_probabilities():
    fg = np.zeros((4, 4, 3), np.uint8)
    alpha = np.ones((4, 4), np.float32)
    alpha[:, 0] = 0
    left = blurred = single = 0
    rng = np.random.default_rng(0)
    settings = DataSettings(duplicate_prob=0.75)
    background = np.zeros((8, 8, 3), np.uint8)
    background[:, 4:] = 255  # sharp: 0 or near it in the first column; blurred: not
    for _ in range(2000):
        image, target, (_, width) = composite(fg, alpha, background, 8, rng, settings)
        single += width == 4
        if width == 8:
            left += target[0, :4].any()
            blurred += image[0, 0, 0] > 0.1
    assert abs(single - 500) < 80
    assert abs(left / (2000 - single) - 0.5) < 0.05
    assert abs(blurred / (2000 - single) - 0.5) < 0.05


def test_blur_sizes_are_uniform():
    # Background only, with a step in the middle: a blur of k pixels leaves k - 1 values between.
    clear = np.zeros((200, 200), np.float32)
    step = np.zeros((200, 200, 3), np.uint8)
    step[:, 100:] = 255
    settings = DataSettings(duplicate_prob=0, blur_prob=1)
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(400):
        image, _, _ = composite(step, clear, step, 200, rng, settings)
        widths.append(1 + int(((image[100, :, 0] > 0) & (image[100, :, 0] < 1)).sum()))
    counts = [widths.count(k) for k in (20, 30, 40, 50, 60)]
    assert sum(counts) == 400
    np.testing.assert_allclose(counts, 80, atol=32)


def test_alphas_of_8_bits_and_floats_give_the_same():
    fg, alpha, background = sources(150, 200)
    eight_bit = np.round(alpha * 255).astype(np.uint8)
    results = [
        composite(fg, a, background, 32, np.random.default_rng(1), SETTINGS)
        for a in (eight_bit, eight_bit.astype(np.float32) / 255)
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_reduced_images_get_a_reduced_blur():
    step = np.zeros((100, 100, 3), np.uint8)
    step[:, 50:] = 255
    settings = DataSettings(duplicate_prob=0, blur_prob=1, blur_sizes=[40])
    clear = np.zeros((100, 100), np.float32)
    for background, factor in ((step, 4), (step.transpose(1, 0, 2), 2)):  # across, down
        image, _, hw = composite(
            step, clear, background, 100, np.random.default_rng(0), settings, hw=(199, 400)
        )
        line = image[50, :, 0] if factor == 4 else image[:, 50, 0]
        assert ((line > 0) & (line < 1)).sum() == 40 // factor - 1
        assert hw == (199, 400)


def test_inputs_are_not_modified():
    arrays = sources(40, 50)
    copies = [a.copy() for a in arrays]
    composite(*arrays, 16, np.random.default_rng(0), SETTINGS)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
