"""Edges that follow the image's own."""

import cv2
import numpy as np

from SDMatte.inference.guided import refine_with_guide


def disc(height=300, width=400):
    """A soft disc of one color on another, uint8 `[H, W, 3]`, and its alpha."""
    ys, xs = np.mgrid[:height, :width]
    distance = np.hypot(ys - height / 2, xs - width / 2) - 90
    alpha = np.clip(0.5 - distance / 4, 0, 1).astype(np.float32)
    fg, bg = np.array([210, 80, 60]), np.array([40, 90, 160])
    image = alpha[..., None] * fg + (1 - alpha[..., None]) * bg
    return image.round().astype(np.uint8), alpha


def test_edges_become_those_of_the_image():
    image, alpha = disc()
    coarse = cv2.resize(alpha, (40, 30), interpolation=cv2.INTER_AREA)
    upscaled = cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_LINEAR)
    refined = refine_with_guide(image, coarse)
    assert refined.dtype == np.float32 and 0 <= refined.min() <= refined.max() <= 1
    assert np.abs(refined - alpha).mean() < 0.85 * np.abs(upscaled - alpha).mean()


def test_certain_parts_stay():
    image, _ = disc()
    image[:40, :40] = (210, 80, 60)  # in the object's color, but far from it
    coarse = np.zeros((30, 40), np.float32)
    coarse[10:20, 15:25] = 1
    refined = refine_with_guide(image, coarse)
    assert refined[:40, :40].max() == 0
    assert refined[148:152, 198:202].min() == 1
    for constant in (0, 1):
        flat = np.full((30, 40), constant, np.float32)
        np.testing.assert_array_equal(refine_with_guide(image, flat), constant)


def test_chunks_of_rows_make_no_difference(monkeypatch):
    image, alpha = disc()
    coarse = cv2.resize(alpha, (40, 30), interpolation=cv2.INTER_AREA)
    whole = refine_with_guide(image, coarse)
    monkeypatch.setattr("SDMatte.inference.guided._CHUNK_ROWS", 7)
    np.testing.assert_allclose(refine_with_guide(image, coarse), whole, atol=1e-5)


def test_any_size():
    coarse = np.full((32, 32), 0.5, np.float32)
    for shape in ((1, 1), (1, 50), (50, 1), (20, 30)):
        image = np.zeros((*shape, 3), np.uint8)
        assert refine_with_guide(image, coarse).shape == shape
