"""Prompts of users: drawn as in training, and rejected if they do not fit their image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from SDMatte.errors import PromptError
from SDMatte.images.resize import resize_trimap
from SDMatte.prompts.maps import box_prompt, mask_prompt, point_prompt
from SDMatte.prompts.pixels import read_prompts

HW = (48, 80)


def draw(size, radius=4.0, **given):
    prompts, is_list = read_prompts(HW, **given)
    assert not is_list
    return prompts[0].draw(size, radius)


@pytest.fixture
def alpha():
    ys, xs = np.mgrid[: HW[0], : HW[1]]
    return np.clip(1.2 - np.hypot(ys - 20, (xs - 50) / 1.5) / 12, 0, 1).astype(np.float32)


def assert_same(drawn, trained):
    np.testing.assert_array_equal(drawn.mask, trained.mask)
    np.testing.assert_allclose(drawn.coords, trained.coords, atol=1e-6)
    assert drawn.coords.dtype == np.float32 and drawn.mask.dtype == np.float32


def test_box_is_drawn_as_in_training(alpha):
    trained = box_prompt(alpha, np.random.default_rng(0), jitter=0.1)
    box = trained.coords * (HW[1], HW[0], HW[1], HW[0])
    assert_same(draw(HW, box=box), trained)


def test_points_are_drawn_as_in_training(alpha):
    trained = point_prompt(alpha, np.random.default_rng(0), radius=4.0)
    points = trained.coords.reshape(-1, 2) * (HW[1], HW[0])
    assert_same(draw(HW, points=points + 1e-4), trained)


def test_mask_is_drawn_as_in_training(alpha):
    trained = mask_prompt(alpha, np.random.default_rng(0), sizes=(3, 5))
    assert trained.mask.any()
    for mask in (trained.mask, trained.mask > 0, (trained.mask * 255).astype(np.uint8)):
        assert_same(draw(HW, mask=mask), trained)


def test_missing_points_are_zeros():
    drawn = draw((24, 40), points=[(8, 12), (79.9, 47.9)])
    expected = [8 / 80, 12 / 48, 39 / 40, 23 / 24]
    np.testing.assert_allclose(drawn.coords, expected + [0] * 16, atol=1e-6)
    assert drawn.mask[6, 4] > 0.9 and drawn.mask[23, 39] > 0.9 and drawn.mask[0, 39] < 0.1


def test_box_is_scaled_and_never_vanishes():
    drawn = draw((24, 160), box=(20, 12, 60, 36))
    assert drawn.mask.sum() == 12 * 80 and drawn.mask[6:18, 40:120].all()
    for box in ((79.9, 47.9, 80, 48), (1, 1, 1.1, 1.1)):
        assert draw((8, 8), box=box).mask.sum() == 1


def test_small_mask_survives_a_small_size():
    mask = np.zeros(HW, bool)
    mask[3, 70] = True
    drawn = draw((8, 8), mask=mask)
    assert drawn.mask.sum() == 1 and drawn.mask[0, 7] == 1
    np.testing.assert_allclose(drawn.coords, [7 / 8, 0, 7 / 8, 0])


def test_trimap_ranges_are_equivalent(alpha):
    trimap = np.select([alpha == 1, alpha > 0], [255, 128], 0).astype(np.uint8)
    expected = resize_trimap(trimap, (24, 40))
    assert set(np.unique(expected)) == {0, 0.5, 1}
    for values in (trimap, trimap.astype(np.float64), np.digitize(trimap, (64, 192)) / 2):
        drawn = draw((24, 40), trimap=values)
        np.testing.assert_array_equal(drawn.mask, expected)
        np.testing.assert_array_equal(drawn.coords, [0, 0, 1, 1])


@pytest.mark.parametrize(
    "values",
    [
        lambda m: m,
        lambda m: m.astype(np.uint8),
        lambda m: m.astype(np.uint16) * 65535,
        lambda m: m.astype(np.int64) * 3,  # the id of an object
        lambda m: m * 255.0,
        lambda m: m * np.float32(0.5),
    ],
)
def test_mask_ranges(values):
    mask = np.zeros(HW, bool)
    mask[10:20, 30:60] = True
    np.testing.assert_array_equal(draw(HW, mask=values(mask)).mask, mask)


def test_small_coordinates_in_pixels():
    for points in ([(0, 0)], [(1, 1), (0, 1)], [(0.5, 0.5), (40, 3)], [(1.5, 1)]):
        prompts, _ = read_prompts(HW, points=points)
        np.testing.assert_array_equal(prompts[0].value, points)
    assert read_prompts((1, 1), box=(0, 0, 1, 1))[0][0].value.tolist() == [0, 0, 1, 1]
    assert read_prompts(HW, box=(0, 0, 1, 2))[0][0].value.tolist() == [0, 0, 1, 2]


def test_trimap_levels(alpha):
    levels = np.digitize(alpha, (0.1, 0.9))
    expected = np.uint8([0, 128, 255])[levels]
    for values in ([0, 1, 2], [0, 127, 255], [0.0, 1, 2], [0, 0.5, 1]):
        prompts, _ = read_prompts(HW, trimap=np.array(values)[levels])
        np.testing.assert_array_equal(prompts[0].value, expected)


def test_no_prompt_is_the_full_frame():
    drawn = draw((8, 8))
    assert drawn.mask.all() and drawn.coords.tolist() == [0, 0, 1, 1]


def test_lists_of_prompts():
    boxes, is_list = read_prompts(HW, box=[(0, 0, 5, 5), (1, 1, 9, 9)])
    assert is_list and [p.value.tolist() for p in boxes] == [[0, 0, 5, 5], [1, 1, 9, 9]]
    one, is_list = read_prompts(HW, box=np.array([[0, 0, 5, 5]]))
    assert is_list and len(one) == 1
    masks = np.ones((2, *HW), bool)
    for value in (masks, list(masks)):
        prompts, is_list = read_prompts(HW, mask=value)
        assert is_list and len(prompts) == 2
    tensors, is_list = read_prompts(HW, mask=torch.ones(2, *HW, requires_grad=True))
    assert is_list and len(tensors) == 2
    (box,), is_list = read_prompts(HW, box=torch.tensor([1.0, 2, 3, 4], requires_grad=True))
    assert not is_list and box.value.tolist() == [1, 2, 3, 4]
    single, is_list = read_prompts(HW, mask=masks[0].tolist())
    assert not is_list and len(single) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"box": (5, 5, 5, 9)}, r"The box \(5, 5, 5, 9\) does not fit the image, which is 80"),
        ({"box": (0, 0, 81, 9)}, "must have 0 <= x0 < x1 <= 80 and 0 <= y0 < y1 <= 48"),
        ({"box": (0, -1, 5, 9)}, "does not fit"),
        ({"box": (0, float("nan"), 5, 9)}, "nan"),
        ({"box": (0, 0, 5)}, "A box is four numbers, x0, y0, x1, y1; got"),
        ({"box": []}, "A box is four numbers"),
        ({"box": "left"}, "got 'left'"),
        ({"box": ["0", "0", "5", "5"]}, "A box is four numbers"),
        ({"box": np.array([0, 0, 5, 5j])}, "A box is four numbers"),
        ({"box": [(0, 0, 5, 5), (9, 9, 1, 1)]}, r"The box \(9, 9, 1, 1\)"),
        ({"points": []}, "1 to 10 pairs"),
        ({"points": [(1, 1)] * 11}, "1 to 10 pairs"),
        ({"points": (3, 4)}, "1 to 10 pairs"),
        ({"points": [(80, 4)]}, r"The point \(80, 4\) is not in the image"),
        ({"points": [(1, 1), (float("inf"), 4)]}, "inf"),
        ({"mask": np.zeros(HW)}, "The mask is empty"),
        ({"mask": np.ones((48, 79))}, "The mask is 79 wide and 48 high, the image 80 and 48"),
        ({"mask": np.full(HW, -1.0)}, "values range from -1 to -1"),
        ({"mask": np.full(HW, np.nan)}, "values range from nan"),
        ({"mask": np.full(HW, 65536, np.int64)}, "values range from 65536"),
        ({"mask": np.full(HW, "x")}, "array of numbers .* got <U1"),
        ({"mask": np.ones((*HW, 3), np.uint8)}, r"here \[48, 80\].* got uint8 \[48, 80, 3\]"),
        ({"mask": 3}, r"A mask is an array of numbers \[H, W\]"),
        ({"trimap": np.full(HW, 3)}, "has the value 3"),
        ({"trimap": np.zeros(HW)}, "only background"),
        ({"trimap": np.full((3, 3), 128)}, "The trimap is 3 wide"),
        (
            {"box": (0.1, 0.1, 0.9, 0.9)},
            r"\[0, 1\], but must be in pixels .* Did you mean 8 5 72 43\?",
        ),
        ({"box": (0, 0, 1, 1)}, r"Did you mean 0 0 80 48\?"),
        ({"box": [(10, 10, 20, 20), (0.5, 0, 1, 1)]}, r"Did you mean 40 0 80 48\?"),
        ({"box": torch.tensor([0.25, 0.25, 0.75, 0.5])}, r"Did you mean 20 12 60 24\?"),
        ({"points": [(0.5, 0.25)]}, r"point has all .* Did you mean 40 12\?"),
        ({"points": [(0.5, 0.25), (1, 1), (0, 0)]}, r"Did you mean 40 12 79 47 0 0\?"),
        ({"mask": np.arange(48 * 80).reshape(HW) % 4}, r"several objects by id \(1, 2, 3\)"),
        ({"mask": np.arange(48 * 80).reshape(HW) % 90 + 300}, r"\(300, .*, 307, \.\.\.\)"),
        ({"trimap": np.arange(48 * 80).reshape(HW) % 2}, "only the values 0 and 1"),
        ({"box": (0, 0, 5, 5), "points": [(1, 1)]}, "one type of prompt.*got box, points"),
    ],
)
def test_invalid_prompts_are_refused(given, message):
    with pytest.raises(PromptError, match=message):
        read_prompts(HW, **given)


numbers = st.one_of(st.floats(-20, 100), st.floats(), st.integers(-(10**400), 10**400))
anything = st.one_of(
    st.none(),
    st.text(max_size=3),
    numbers,
    st.lists(numbers, max_size=5),
    st.lists(st.lists(numbers, max_size=5), max_size=12),
    st.lists(st.tuples(st.floats(0, 79), st.floats(0, 47)), min_size=1, max_size=11),
    arrays(scalar_dtypes(), array_shapes(max_dims=3, max_side=5)),
    arrays(st.sampled_from([bool, np.uint8, np.float32]), st.just(HW)),
    arrays(np.uint8, st.just(HW), elements=st.sampled_from([0, 128, 255])),
)


@settings(max_examples=200)
@given(kind=st.sampled_from(["box", "points", "mask", "trimap"]), value=anything)
def test_any_value_is_a_valid_prompt_or_refused(kind, value):
    try:
        prompts, _ = read_prompts(HW, **{kind: value})
    except PromptError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
        return
    for size in ((16, 16), (96, 64)):
        for prompt in prompts:
            drawn = prompt.draw(size, 4.0)
            assert drawn.mask.shape == size and drawn.mask.dtype == np.float32
            assert drawn.mask.min() >= 0 and 0 < drawn.mask.max() <= 1
            assert drawn.coords.min() >= 0 and drawn.coords.max() <= 1
            assert len(drawn.coords) == (20 if prompt.kind.is_point else 4)
