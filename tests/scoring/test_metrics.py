"""Metrics: golden values, slow references, and cases by hand."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import slow_metrics

from SDMatte.scoring import metrics
from SDMatte.scoring.metrics import METRICS, connectivity, gradient, mad, mse, sad

GOLDEN = Path(__file__).parents[1] / "golden"
PROTOCOLS = ("official", "corrected")
golden_values = json.loads((GOLDEN / "metrics.json").read_text())


@pytest.fixture(scope="module")
def golden_arrays():
    with np.load(GOLDEN / "metrics.npz") as file:
        return dict(file)


def random_pair(rng, shape, kind):
    """Draw a pair that reaches certain branches: specks, blobs, few levels, nearly full."""
    if kind == "specks":
        pair = rng.integers(0, 256, (2, *shape))
    elif kind == "blobs":
        base = cv2.GaussianBlur(rng.random(shape), (0, 0), 2)
        base = (base - base.mean()) / base.std() * 120 + rng.integers(60, 200)
        pair = base + rng.normal(0, 12, (2, *shape))
    elif kind == "levels":
        pair = rng.choice([0, 51, 102, 153, 204, 255], (2, *shape))
    else:
        pair = 255 - rng.integers(0, 140, (2, *shape)) * (rng.random((2, *shape)) < 0.3)
    return np.clip(pair, 0, 255).astype(np.uint8)


@pytest.mark.numerics
@pytest.mark.parametrize("values", golden_values, ids=lambda v: str(v["i"]))
@pytest.mark.parametrize("as_float", [False, True])
def test_golden(golden_arrays, values, as_float):
    pred, true, trimap = (golden_arrays[f"{n}_{values['i']}"] for n in ("pred", "true", "trimap"))
    if as_float:
        pred, true = pred / np.float32(255), true / 255.0
    for key, metric in METRICS.items():
        assert metric(pred, true) == pytest.approx(values[key.lower()], rel=1e-5, abs=0)
        restricted = metric(pred, true, trimap, protocol="official")
        assert restricted == pytest.approx(values[f"tri_{key.lower()}"], rel=1e-5, abs=0)


@pytest.mark.parametrize("kind", ["specks", "blobs", "levels", "filled"])
def test_against_the_slow_definition(kind):
    rng = np.random.default_rng(0)
    differs = 0
    for i in range(24):
        pred, true = random_pair(rng, (int(rng.integers(1, 20)), int(rng.integers(1, 20))), kind)
        trimap = rng.choice([0, 128, 255], pred.shape).astype(np.uint8) if i % 2 else None
        found = gradient(pred, true, trimap)
        assert found == pytest.approx(slow_metrics.gradient(pred, true, trimap), rel=1e-5, abs=1e-9)
        expected = [slow_metrics.connectivity(pred, true, trimap, p) for p in PROTOCOLS]
        found = [connectivity(pred, true, trimap, protocol=p) for p in PROTOCOLS]
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
        differs += expected[0] != expected[1]
    assert differs  # otherwise one protocol would be untested


@pytest.mark.numerics
def test_gradient_across_chunks():
    """The chunks of rows and the cropping to differences leave no seams."""
    rng = np.random.default_rng(1)
    seam = metrics._CHUNK
    regions = (
        np.s_[seam - 4 : seam + 6, 3:5],
        np.s_[:1, :1],
        np.s_[149:, 89:],
        np.s_[seam - 1 : seam],
    )
    for region in regions:
        true = rng.integers(0, 256, (150, 90), dtype=np.uint8)
        pred = true.copy()
        pred[region] = 255 - pred[region]
        expected = slow_metrics.gradient(pred, true)
        assert expected > 0
        assert gradient(pred, true) == pytest.approx(expected, rel=1e-5)


def test_connectivity_of_large_images():
    """Flood fill, cropping and chunks of rows, against scipy's labels."""
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(2)
    for shape in ((200, 170), (130, 300)):
        pred, true = random_pair(rng, shape, "blobs") / np.float32(255)
        pred[:, :20] = true[:, :20] = 0
        last = np.full(shape, -1, np.float32)
        for step in range(1, 11):
            labels, count = ndimage.label(np.minimum(pred, true) >= np.float32(step / 10))
            sizes = np.bincount(labels.ravel(), minlength=2)[1:]
            omega = labels == 1 + np.argmax(sizes) if count else np.zeros(shape, bool)
            last[(last < 0) & ~omega] = np.float32((step - 1) / 10)
        last[last < 0] = 1
        excess = [np.where(a - last >= np.float32(0.15), a - last, 0) for a in (pred, true)]
        expected = np.abs(excess[0] - excess[1]).sum(dtype=np.float64) / 1000
        found = connectivity(pred, true, protocol="corrected")
        assert found == pytest.approx(expected, rel=1e-6)


def test_means_and_sums_by_hand():
    pred, true = np.array([[0, 255], [51, 0]], np.uint8), np.array([[0, 0], [255, 0]], np.uint8)
    trimap = np.array([[128, 0], [128, 255]], np.uint8)
    assert mse(pred, true) == pytest.approx((1 + 0.64) / 4)
    assert mad(pred, true) == pytest.approx(1.8 / 4)
    assert sad(pred, true) == pytest.approx(1.8 / 1000)
    assert mse(pred, true, trimap) == pytest.approx(0.64 / 2)
    assert mad(pred, true, trimap) == pytest.approx(0.8 / 2)
    assert sad(pred, true, trimap) == pytest.approx(0.8 / 1000)
    assert mse(pred, true, np.asfortranarray(trimap.astype(int))) == pytest.approx(0.64 / 2)
    assert all(type(metric(pred, true, trimap)) is float for metric in METRICS.values())


def test_gradient_of_a_point_is_the_norm_of_both_kernels():
    pred = np.zeros((21, 21), np.uint8)
    pred[10, 10] = 255
    assert gradient(pred, np.zeros_like(pred)) == pytest.approx(2 / 1000)


@pytest.mark.parametrize(
    ("pred", "true", "official", "corrected"),
    [
        # The right pixel is never in Omega (l = 0). The left pair is up to .5; above, the official
        # Omega is the background, which contains it (l = 1).
        ([[0.5, 0.5, 0, 0.8]], [[0.5, 0.9, 0, 0.5]], 0.3, 0.7),
        # Nothing is connected: official l = 1 in the background, corrected l = 0.
        ([[0, 0, 0, 0]], [[0, 1, 0.6, 0.1]], 0, 1.6),
        # Distances below .15 do not count.
        ([[1, 0.9, 1]], [[1, 1, 0.8]], 0.2, 0.2),
        # Two components of one pixel: the upper right one comes first.
        ([[0, 0, 0, 0.55], [0.5, 0, 0, 0]], [[0, 0, 0, 1], [1, 0, 0, 0]], 0.95, 1.0),
    ],
)
def test_connectivity_by_hand(pred, true, official, corrected):
    pred, true = np.array(pred, float), np.array(true, float)
    assert connectivity(pred, true) == pytest.approx(official / 1000, abs=1e-9)
    found = connectivity(pred, true, protocol="corrected")
    assert found == pytest.approx(corrected / 1000, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", range(1, 10))
def test_thresholds_are_exact(step, dtype):
    """A tenth reaches its threshold, the next smaller number does not, in any precision."""
    true = np.ones((1, 1), dtype)
    before = np.nextafter(np.float32(step / 10), np.float32(0))
    for value, level in ((step / 10, step), (before, step - 1)):
        found = connectivity(np.full((1, 1), value, dtype), true, protocol="corrected")
        distance = 1 - level / 10
        assert found == pytest.approx(distance / 1000 if distance > 0.15 else 0, abs=1e-9)


def test_smallest_distance_that_counts():
    true, pred = np.zeros((2, 5, 9), np.float32)
    true[:3] = pred[:3] = 1
    distance = np.float32(0.15)
    for value, expected in ((distance, distance / 1000), (np.nextafter(distance, 0), 0)):
        true[4, 8] = value  # outside Omega, where pred is 0
        assert connectivity(pred, true) == pytest.approx(expected, rel=1e-6)


@pytest.mark.numerics
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_identical_and_swapped(protocol):
    rng = np.random.default_rng(3)
    for kind in ("specks", "blobs", "levels", "filled"):
        pred, true = random_pair(rng, (40, 30), kind)
        for metric in METRICS.values():
            assert metric(pred, pred.copy(), protocol=protocol) == 0
            value = metric(pred, true, protocol=protocol)
            assert value > 0
            assert metric(true, pred, protocol=protocol) == pytest.approx(value, rel=1e-6)


def test_empty_and_full_predictions():
    true = np.zeros((30, 30), np.uint8)
    true[10:20, 10:20] = 255
    empty, full = np.zeros_like(true), np.full_like(true, 255)
    assert connectivity(empty, true) == 0
    assert connectivity(empty, true, protocol="corrected") == pytest.approx(0.1)
    assert sad(empty, true) == pytest.approx(0.1)
    assert sad(full, true) == pytest.approx(0.8)
    assert connectivity(full, true, protocol="corrected") == pytest.approx(0.8)


def test_trimap_without_unknown_pixels_gives_zero():
    pred, true = random_pair(np.random.default_rng(4), (9, 9), "specks")
    trimap = np.zeros((9, 9), np.uint8)
    assert [metric(pred, true, trimap) for metric in METRICS.values()] == [0] * 5


def test_inputs_are_not_modified():
    rng = np.random.default_rng(5)
    pred, true = (a / np.float32(255) for a in random_pair(rng, (70, 33), "blobs"))
    copies = pred.copy(), true.copy()
    for metric in METRICS.values():
        metric(pred, true)
    assert np.array_equal(pred, copies[0])
    assert np.array_equal(true, copies[1])


@pytest.mark.numerics
def test_any_memory_layout():
    rng = np.random.default_rng(6)
    pred, true = random_pair(rng, (40, 50), "blobs")
    for metric in METRICS.values():
        strided = metric(np.asfortranarray(pred), np.repeat(true, 2, axis=1)[:, ::2])
        assert strided == pytest.approx(metric(pred, true), rel=1e-6)


good = np.zeros((4, 5), np.uint8)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((good, good.T), {}, "shapes must be equal"),
        ((good[None], good[None]), {}, r"\[H, W\]"),
        ((good[:0], good[:0]), {}, "not empty"),
        ((good.astype(np.int64), good), {}, "int64"),
        ((np.full((4, 5), np.nan), good), {}, "pred has NaN"),
        ((good, np.full((4, 5), np.inf)), {}, "true has NaN or infinite"),
        ((np.full((4, 5), 255.0), good), {}, r"must be in \[0, 1\]"),
        ((np.full((4, 5), -0.1), good), {}, r"must be in \[0, 1\]"),
        ((good, good, good[:2]), {}, "trimap is"),
        ((good, good, np.zeros((4, 5))), {}, "float64; it must be integer"),
        ((good, good, np.zeros((4, 5), bool)), {}, "bool; it must be integer"),
        ((good, good), {"protocol": "other"}, "official, corrected"),
    ],
)
def test_bad_arguments(metric, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        metric(*arguments, **options)
