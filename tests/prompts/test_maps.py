"""Mask, box and point prompts against results by hand: data/README.md, steps 5, 6, 7."""

import numpy as np
import pytest
from data_trees import disc
from scipy import ndimage

from SDMatte.prompts.maps import (
    auto_prompt,
    box_prompt,
    disc_map,
    extent,
    heat_map,
    jitter_box,
    loosen_box,
    mask_prompt,
    object_box,
    point_prompt,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def canvas(*boxes, shape=(100, 200)):
    """Alpha 1 in boxes (x0, y0, x1, y1), the last column and row included."""
    alpha = np.zeros(shape, np.float32)
    for x0, y0, x1, y1 in boxes:
        alpha[y0 : y1 + 1, x0 : x1 + 1] = 1
    return alpha


# ------------------------------------------------------------------------- box


def test_box_of_one_component():
    box = (20, 10, 59, 49)
    prompt = box_prompt(canvas(box), rng())
    np.testing.assert_allclose(prompt.coords, [20 / 200, 10 / 100, 59 / 200, 49 / 100], rtol=1e-6)
    expected = np.zeros((100, 200))
    expected[10:49, 20:59] = 1  # without the last row and column
    np.testing.assert_array_equal(prompt.mask, expected)
    assert prompt.mask.dtype == prompt.coords.dtype == np.float32


def test_box_includes_the_faintest_alpha():
    alpha = canvas((20, 10, 59, 49))
    alpha[80, 150] = 1e-4
    assert object_box(alpha) == (20, 10, 59, 49)  # 1600 to 1 pixels: only the large one
    alpha[60:81, 150] = 1e-4
    alpha[60, 60:150] = 1e-4
    alpha[49:60, 59] = 1e-4
    assert object_box(alpha) == (20, 10, 59, 59)  # 1600 + 10 to 21 + 90
    alpha[60, 59] = 1e-4
    assert object_box(alpha) == (20, 10, 150, 80)  # all one component now


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((150, 60, 159, 69), (10, 10, 109, 19)),  # 1000 to 100: at least ten times
        ((150, 60, 159, 70), (10, 10, 159, 70)),  # 1000 to 110
    ],
)
def test_box_ten_times_rule(second, expected):
    assert object_box(canvas((10, 10, 109, 19), second)) == expected


def test_box_ten_times_rule_compares_the_two_largest():
    small = [(x, 60, x + 8, 68) for x in range(0, 180, 12)]  # 15 of 81 pixels
    assert object_box(canvas((10, 10, 109, 19), *small)) == (10, 10, 109, 19)


def test_box_components_are_4_connected():
    # 30 x 30 and 3 x 3 pixels that share a corner are two components.
    assert object_box(canvas((10, 10, 39, 39), (40, 40, 42, 42))) == (10, 10, 39, 39)
    assert object_box(canvas((10, 10, 39, 39), (39, 40, 42, 42))) == (10, 10, 42, 42)


def test_box_of_an_empty_alpha():
    for shape in ((10, 20), (1, 1)):
        prompt = box_prompt(np.zeros(shape, np.float32), rng(), 0.01)
        assert not prompt.mask.any()
        np.testing.assert_array_equal(prompt.coords, [0, 0, 1, 1])


def test_box_of_the_full_image_and_of_one_pixel():
    prompt = box_prompt(np.ones((10, 20), np.float32), rng())
    np.testing.assert_allclose(prompt.coords, [0, 0, 19 / 20, 9 / 10], rtol=1e-6)
    assert prompt.mask.sum() == 19 * 9
    prompt = box_prompt(canvas((5, 7, 5, 7)), rng())
    np.testing.assert_allclose(prompt.coords, [5 / 200, 7 / 100] * 2, rtol=1e-6)
    assert not prompt.mask.any()  # the end is exclusive


def test_jitter_limits_and_distribution():
    box, shape = (100, 200, 800, 700), (1000, 1000)
    moved = np.array([jitter_box(box, shape, rng(i), 0.01) for i in range(3000)]) - box
    # int(c · 700) and int(c · 500) with c up to .01: at most 6 (7 with probability 0) and 4.
    assert np.abs(moved[:, [0, 2]]).max() == 6 and np.abs(moved[:, [1, 3]]).max() == 4
    assert (np.abs(moved[:, 0]) == np.abs(moved[:, 2])).all()  # one c for all sides
    x_steps, y_steps = np.abs(moved[:, 0]), np.abs(moved[:, 1])
    assert not y_steps[x_steps == 0].any() and (y_steps[x_steps >= 2] >= 1).all()
    for side in range(4):  # each side independently, in or out
        steps = moved[:, side][moved[:, side] != 0]
        assert abs((steps > 0).mean() - 0.5) < 0.05
    assert abs(np.corrcoef(np.sign(moved[:, 0]), np.sign(moved[:, 2]))[0, 1]) < 0.07
    sizes = np.bincount(np.abs(moved[:, 0]))  # c is uniform
    np.testing.assert_allclose(sizes, 3000 / 7, atol=80)


def test_jitter_stays_in_the_image_and_is_off_at_0():
    shape = (300, 400)
    moved = np.array([jitter_box((0, 0, 399, 299), shape, rng(i), 0.01) for i in range(300)])
    assert moved.min() == 0 and moved[:, 2].max() == 399 and moved[:, 3].max() == 299
    assert moved[:, 0].max() == 3 and moved[:, 2].min() == 396
    assert jitter_box((3, 4, 350, 290), shape, rng(), 0) == (3, 4, 350, 290)


# ------------------------------------------------------------------------ mask


def test_extent():
    mask = np.zeros((6, 9), bool)
    assert extent(mask) is None
    mask[2, 3] = mask[4, 7] = True
    assert extent(mask) == (3, 2, 7, 4)


def masks_of(alpha, count=400, sizes=(15, 15)):
    return [mask_prompt(alpha, rng(i), sizes) for i in range(count)]


def test_mask_operations_by_hand():
    # A square of 40 with a hole of 5 and, far away, a square of 9.
    square = canvas((60, 40, 99, 79), (150, 50, 158, 58), shape=(120, 200))
    square[55:60, 75:80] = 0
    seen = {tuple(p.coords): p for p in masks_of(square)}
    w, h = 200, 120
    expected = {
        "erode": (67, 47, 92, 72),  # each side moves in by 7; the small one vanishes
        "dilate": (53, 33, 165, 86),  # each side moves out by 7
        "open": (60, 40, 99, 79),  # the small square is gone
        "close": (60, 40, 158, 79),  # the small square is still there
    }
    by_box = {
        name: seen[tuple(np.float32(v) for v in (x0 / w, y0 / h, x1 / w, y1 / h))]
        for name, (x0, y0, x1, y1) in expected.items()
    }
    assert len(seen) == 4
    assert by_box["close"].mask[57, 77] == by_box["dilate"].mask[57, 77] == 1  # hole filled
    assert by_box["erode"].mask[57, 77] == by_box["open"].mask[57, 77] == 0
    for prompt in seen.values():
        assert set(np.unique(prompt.mask)) == {0, 1} and prompt.mask.dtype == np.float32


def test_mask_operations_are_uniform():
    alpha = canvas((60, 40, 99, 79), (150, 50, 158, 58), shape=(120, 200))
    coords = [tuple(p.coords) for p in masks_of(alpha, 800)]
    np.testing.assert_allclose([coords.count(c) for c in set(coords)], 200, atol=50)


def test_mask_sizes_are_independent():
    # Opening with a smaller erosion than dilation grows the square.
    coords = {tuple(p.coords) for p in masks_of(canvas((80, 30, 119, 69)), 400, (15, 29))}
    widths = {round((c[2] - c[0]) * 200) + 1 for c in coords}
    # Erosion moves one side by k // 2 and the other by (k - 1) // 2, k - 1 in total.
    assert min(widths) == 40 - 28 and max(widths) == 40 + 28
    assert {40 - 14, 40 - 1, 40, 40 + 1, 40 + 14} <= widths


def test_mask_threshold_is_uniform():
    alpha = np.tile(np.linspace(0, 1, 1001, dtype=np.float32), (3, 1))
    thresholds = []
    for i in range(1500):
        mask = mask_prompt(alpha, rng(i), (1, 1)).mask
        thresholds.append(alpha[0][mask[0] > 0].min())
    quantiles = np.quantile(thresholds, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [0.01, 0.2575, 0.505, 0.7525, 1], atol=0.035)


def test_mask_includes_the_threshold():
    alpha = np.full((4, 5), 0.5, np.float32)
    assert mask_prompt(alpha, rng(), (1, 1), (0.5, 0.5)).mask.all()
    assert not mask_prompt(np.nextafter(alpha, 0), rng(), (1, 1), (0.5, 0.5)).mask.any()


def test_empty_mask():
    for alpha in (np.zeros((50, 50), np.float32), np.full((50, 50), 0.005, np.float32)):
        for prompt in masks_of(alpha, 20):
            assert not prompt.mask.any()
            np.testing.assert_array_equal(prompt.coords, [0, 0, 1, 1])


# ---------------------------------------------------------------------- points


def scipy_heat_map(points, shape, sigma):
    maps = []
    for x, y in points:
        single = np.zeros(shape)
        single[y, x] = 1
        blurred = ndimage.gaussian_filter(single, sigma, mode="reflect", truncate=4)
        maps.append(blurred / blurred.max())
    return np.max(maps, axis=0)


@pytest.mark.numerics
@pytest.mark.parametrize("sigma", [1, 3.5, 25])
def test_heat_map_equals_scipy(sigma):
    shape = (90, 140)
    points = [(0, 0), (139, 89), (3, 50), (70, 1), (70, 45), (71, 45)]
    np.testing.assert_allclose(
        heat_map(points, shape, sigma), scipy_heat_map(points, shape, sigma), atol=1e-6
    )


def test_heat_map_is_a_gaussian_cut_at_4_sigma():
    result = heat_map([(100, 100)], (201, 201), 10)
    assert result[100, 100] == 1 and result.dtype == np.float32
    np.testing.assert_allclose(result[100, 110], np.exp(-0.5), rtol=1e-5)
    np.testing.assert_allclose(result[120, 110], np.exp(-0.5 * (4 + 1)), rtol=1e-5)
    assert result[100, 140] > 0 and result[100, 141] == 0 and result[59, 100] == 0


def test_heat_map_near_a_border_peaks_at_the_border():
    # Reflection doubles the values at the border, so the peak may not be at the point.
    result = heat_map([(2, 50)], (101, 101), 10)
    assert result.max() == 1 and result[50, 0] == 1 and result[50, 2] < 1


def test_disc_map():
    result = disc_map([(5, 2), (18, 9)], (10, 20), 3)
    ys, xs = np.mgrid[:10, :20]
    expected = (np.hypot(xs - 5, ys - 2) <= 3) | (np.hypot(xs - 18, ys - 9) <= 3)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("psm", ["gauss", "circle"])
def test_point_prompt(psm):
    alpha = canvas((40, 20, 79, 59)) * 0.81
    alpha[:10] = 0.79
    prompt = point_prompt(alpha, rng(), radius=4, psm=psm)
    points = prompt.coords.reshape(10, 2) * (200, 100)
    pixels = np.round(points).astype(int)
    np.testing.assert_allclose(points, pixels, atol=1e-4)
    assert len({tuple(p) for p in pixels}) == 10
    assert (alpha[pixels[:, 1], pixels[:, 0]] > 0.8).all()
    draw = heat_map if psm == "gauss" else disc_map
    np.testing.assert_array_equal(prompt.mask, draw(pixels.tolist(), alpha.shape, 4))
    assert prompt.coords.dtype == prompt.mask.dtype == np.float32


def test_points_are_uniform_in_the_solid_part():
    alpha = np.zeros((10, 10), np.float32)
    alpha[:4, :5] = 1  # 20 pixels, of which 10 are drawn
    counts = np.zeros((10, 10))
    for i in range(1000):
        x, y = np.round(point_prompt(alpha, rng(i), 1).coords.reshape(10, 2).T * 10).astype(int)
        counts[y, x] += 1
    np.testing.assert_allclose(counts[:4, :5], 500, atol=80)
    assert counts.sum() == 10_000


def test_fewer_than_ten_points():
    alpha = np.zeros((10, 10), np.float32)
    alpha[0, :9] = 1
    prompt = point_prompt(alpha, rng())
    assert not prompt.mask.any() and not prompt.coords.any() and prompt.coords.shape == (20,)
    alpha[5, 5] = 1
    assert point_prompt(alpha, rng()).mask.any()


def test_points_are_above_the_threshold():
    alpha = np.full((4, 5), 0.8, np.float32)
    assert not point_prompt(alpha, rng()).mask.any()
    assert point_prompt(np.nextafter(alpha, 1), rng()).mask.any()


def test_auto():
    prompt = auto_prompt((3, 4))
    assert (prompt.mask == 1).all() and prompt.mask.shape == (3, 4)
    np.testing.assert_array_equal(prompt.coords, [0, 0, 1, 1])


def test_prompts_do_not_change_the_alpha():
    alpha = canvas((40, 20, 79, 59))
    copy = alpha.copy()
    for function in (mask_prompt, box_prompt, point_prompt):
        function(alpha, rng())
    np.testing.assert_array_equal(alpha, copy)


# ------------------------------------------------------------------ loose boxes


def test_each_side_loosens_outward_independently():
    box, shape = (100, 200, 299, 299), (1000, 1000)
    moved = np.array(
        [loosen_box(box, shape, np.random.default_rng(i), 0.2) for i in range(2000)]
    ) - np.array(box)
    outward = moved * (-1, -1, 1, 1)
    # Uniform up to 0.2 of 199 and of 99 pixels.
    assert outward.min() == 0 and outward.max(axis=0).tolist() == [40, 20, 40, 20]
    np.testing.assert_allclose(outward.mean(axis=0), [19.9, 9.9, 19.9, 9.9], rtol=0.05)
    assert (abs(np.corrcoef(outward.T) - np.eye(4)) < 0.09).all()


def test_loose_boxes_stay_in_the_image_and_keep_their_jitter():
    rng = np.random.default_rng(0)
    assert loosen_box((0, 0, 39, 19), (20, 40), rng, 5) == (0, 0, 39, 19)
    alpha = disc(100, 100, 20)
    for seed in range(20):
        plain = box_prompt(alpha, np.random.default_rng(seed), 0.1).coords
        loose = box_prompt(alpha, np.random.default_rng(seed), 0.1, 0.5).coords
        assert (loose[:2] <= plain[:2]).all() and (loose[2:] >= plain[2:]).all()
    assert (loose != plain).any()
