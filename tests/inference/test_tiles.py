"""Refinement with tiles: more detail if they are right, no harm if they are wrong, no seams."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from SDMatte.inference.tiles import refine_with_tiles

TILE = 256
HW = (1536, 2048)


@pytest.fixture(scope="module")
def scene():
    """A ball of hair, 2048 wide: alpha, an image that shows it, and a first pass at 256."""
    ys, xs = np.mgrid[: HW[0], : HW[1]].astype(np.float32)
    ys, xs = ys - HW[0] / 2, xs - HW[1] / 2
    angle = np.arctan2(ys, xs)
    edge = 450 + 50 * np.sin(150 * angle) + 25 * np.sin(37 * angle + 1)
    alpha = np.clip((edge - np.hypot(xs, ys)) / 6 + 0.5, 0, 1)
    image = np.repeat((alpha * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    small = cv2.resize(alpha, (256, 192), interpolation=cv2.INTER_AREA)
    return alpha, image, cv2.GaussianBlur(small, (0, 0), 0.7)


class SeesAlpha:
    """Stand in for a network with known output: read alpha off the image, with a given error."""

    def __init__(self, wrong=lambda matte, known, rng: matte):
        self.wrong, self.rng = wrong, np.random.default_rng(0)
        self.batches, self.pixels = [], 0

    def __call__(self, crops, mattes):
        self.batches.append(len(crops))
        self.pixels += sum(crop[..., 0].size for crop in crops)
        for crop, known in zip(crops, mattes, strict=True):
            assert crop.shape[:2] == known.shape and max(known.shape) <= TILE
            assert ((known > 0.02) & (known < 0.98)).any()
        pairs = zip(crops, mattes, strict=True)
        return [self.wrong(c[..., 0].astype(np.float32) / 255, m, self.rng) for c, m in pairs]


def band_error(scene, result):
    alpha = scene[0]
    band = cv2.dilate(((alpha > 0) & (alpha < 1)).astype(np.uint8), np.ones((25, 25))) > 0
    return float(np.abs(result - alpha)[band].mean())


def plain(scene):
    return cv2.resize(scene[2], HW[::-1], interpolation=cv2.INTER_LINEAR)


def test_correct_tiles_restore_details(scene):
    model = SeesAlpha()
    result = refine_with_tiles(scene[1], scene[2], model, TILE, batch_size=3)
    assert result.shape == HW and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1
    assert band_error(scene, result) < 0.35 * band_error(scene, plain(scene))
    # Far from the edges nothing is predicted and nothing changes.
    assert max(model.batches) == 3
    assert model.pixels < 1.5 * HW[0] * HW[1]
    assert result[:200].max() < 1e-6 and result[700:800, 950:1050].min() > 1 - 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        lambda matte, known, rng: np.zeros_like(matte),
        lambda matte, known, rng: np.full_like(matte, 0.5),
        lambda matte, known, rng: 1 - matte,
        lambda matte, known, rng: known.copy(),
    ],
    ids=["nothing", "gray", "the background", "nothing new"],
)
def test_useless_tiles_do_no_harm(scene, wrong):
    result = refine_with_tiles(scene[1], scene[2], SeesAlpha(wrong), TILE)
    assert band_error(scene, result) <= 1.01 * band_error(scene, plain(scene))


def biased(matte, known, rng):
    return np.clip(matte + rng.uniform(-0.3, 0.3), 0, 1)


def test_biased_tiles_still_add_details(scene):
    result = refine_with_tiles(scene[1], scene[2], SeesAlpha(biased), TILE)
    assert band_error(scene, result) < 0.5 * band_error(scene, plain(scene))


@pytest.mark.numerics
def test_biased_tiles_leave_no_seams():
    veil = np.tile(np.linspace(0.2, 0.8, 1024, dtype=np.float32), (768, 1))
    image = np.repeat((veil * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    first = cv2.resize(veil, (256, 192), interpolation=cv2.INTER_AREA)
    result = refine_with_tiles(image, first, SeesAlpha(biased), TILE)
    error = result - veil
    assert np.abs(error).max() < 0.05  # though tiles are wrong by up to 0.3
    assert max(np.abs(np.diff(error, axis=axis)).max() for axis in (0, 1)) < 0.01


@pytest.mark.numerics
def test_small_images_have_one_pass(scene):
    def never(crops, mattes):
        raise AssertionError("There is nothing to refine.")

    image, first = scene[1][:190, :250], scene[2]
    result = refine_with_tiles(image, first, never, TILE)
    assert result.shape == (190, 250)
    np.testing.assert_allclose(result, cv2.resize(first, (250, 190)), atol=1e-5)
    certain = refine_with_tiles(scene[1], np.zeros((192, 256), np.float32), never, TILE)
    assert certain.shape == HW and not certain.any()


@pytest.mark.parametrize("hw", [(40, 3000), (3000, 40), (257, 300)])
def test_any_aspect_ratio(hw):
    alpha = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    image = np.zeros((*hw, 3), np.uint8)
    result = refine_with_tiles(image, alpha, SeesAlpha(), TILE)
    assert result.shape == hw and np.isfinite(result).all()


LARGE = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import cv2, numpy as np
from check_large_image import draw
from test_tiles import SeesAlpha, biased
import torch
from SDMatte.runtime.devices import peak_memory
from SDMatte.inference.tiles import refine_with_tiles
import test_tiles
test_tiles.TILE = 1024
alpha = draw(7680, 4320)[1]
image = cv2.merge([np.round(alpha * 255).astype(np.uint8)] * 3)
first = cv2.GaussianBlur(cv2.resize(alpha, (1024, 1024), interpolation=cv2.INTER_AREA), (0, 0), 0.7)
before = peak_memory(torch.device("cpu"))
result = refine_with_tiles(image, first, SeesAlpha(biased), 1024)
after = peak_memory(torch.device("cpu"))
plain = cv2.resize(first, (7680, 4320), interpolation=cv2.INTER_LINEAR)
band = cv2.dilate(((alpha > 0) & (alpha < 1)).astype(np.uint8), np.ones((25, 25))) > 0
errors = [float(np.abs(a[band] - alpha[band]).mean()) for a in (plain, result)]
print(*errors, after - before)
"""


@pytest.mark.slow
def test_8k_images_are_refined_in_bounded_memory():
    folders = [str(Path(__file__).parents[2] / "tools"), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", LARGE, *folders], capture_output=True, text=True, check=True
    )
    plain, refined, memory = map(float, done.stdout.split())
    assert refined < 0.7 * plain
    assert memory < 0.75  # GiB besides image and alpha: 24 bytes for each of 33 million pixels
