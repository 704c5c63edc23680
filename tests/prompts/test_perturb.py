"""Perturbed prompts."""

import numpy as np
import pytest
import torch
from data_trees import disc, write_aim

from SDMatte.data import MattingDataset
from SDMatte.errors import ConfigError
from SDMatte.prompts.maps import box_prompt, heat_map, mask_prompt, point_prompt
from SDMatte.prompts.perturb import PromptPerturbation
from SDMatte.prompts.types import PROMPT_TYPES

SHAPE = (100, 200)


@pytest.fixture
def prompts():
    """Prompts of a disc of radius 20 in the center."""
    alpha = disc(*SHAPE, radius=20)
    rng = np.random.default_rng(0)
    return {
        "bbox_mask": box_prompt(alpha, rng),
        "point_mask": point_prompt(alpha, rng, radius=4),
        "mask": mask_prompt(alpha, rng, (1, 1), (0.5, 0.5)),
    }


def change(prompts, **settings):
    return PromptPerturbation(**settings).change(prompts, radius=4, psm="gauss")


def pixels(prompt):
    height, width = SHAPE
    return (
        np.rint(prompt.coords.astype(float) * (width, height, width, height)).astype(int).tolist()
    )


def test_defaults_change_nothing(prompts):
    assert change(prompts) == {}
    assert all(PromptPerturbation().describe(name) == "" for name in PROMPT_TYPES)


@pytest.mark.parametrize(("fraction", "step"), [(0.1, 4), (0.5, 19), (-0.1, -4), (-0.4, -15)])
def test_box_sides_move_by_a_fraction(prompts, fraction, step):
    x0, y0, x1, y1 = pixels(prompts["bbox_mask"])
    assert (x1 - x0, y1 - y0) == (38, 38)
    changed = change(prompts, box=fraction)
    assert list(changed) == ["bbox_mask"]
    moved = pixels(changed["bbox_mask"])
    assert moved == [x0 - step, y0 - step, x1 + step, y1 + step]
    mask = np.zeros(SHAPE)
    mask[moved[1] : moved[3], moved[0] : moved[2]] = 1
    assert (changed["bbox_mask"].mask == mask).all()


def test_box_stays_in_the_image(prompts):
    assert pixels(change(prompts, box=10)["bbox_mask"]) == [0, 0, 199, 99]


@pytest.mark.parametrize("number", [1, 3, 9])
def test_first_points_are_kept(prompts, number):
    before = prompts["point_mask"].coords.reshape(-1, 2)
    changed = change(prompts, points=number)
    assert list(changed) == ["point_mask"]
    after = changed["point_mask"].coords.reshape(-1, 2)
    assert (after[:number] == before[:number]).all() and not after[number:].any()
    points = np.rint(before[:number].astype(float) * (200, 100)).astype(int).tolist()
    assert (changed["point_mask"].mask == heat_map(points, SHAPE, 4)).all()


def test_fewer_points_than_kept(prompts):
    few = change(prompts, points=2)["point_mask"]
    again = change({**prompts, "point_mask": few}, points=5)["point_mask"]
    assert (again.coords == few.coords).all() and (again.mask == few.mask).all()


@pytest.mark.parametrize("fraction", [0.1, 0.3, -0.1, -0.3])
def test_mask_outline_moves(prompts, fraction):
    before = prompts["mask"].mask > 0
    changed = change(prompts, mask=fraction)
    assert list(changed) == ["mask"]
    after = changed["mask"].mask > 0
    radius = np.sqrt(before.sum() / np.pi)
    expected = radius + fraction * np.sqrt(before.sum())
    assert np.sqrt(after.sum() / np.pi) == pytest.approx(expected, abs=0.6)
    inner, outer = (before, after) if fraction > 0 else (after, before)
    assert (outer | ~inner).all()
    rows = np.flatnonzero(after.any(axis=1))
    assert pixels(changed["mask"])[1::2] == [rows[0], rows[-1]]


def test_mask_may_vanish_and_empty_prompts_stay_empty(prompts):
    changed = change(prompts, mask=-1.0)["mask"]
    assert not changed.mask.any() and changed.coords.tolist() == [0, 0, 1, 1]
    empty = {name: prompt._replace(mask=prompt.mask * 0) for name, prompt in prompts.items()}
    assert change(empty, box=0.2, points=3, mask=0.2) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"box": -0.5}, {"box": 11}, {"box": "a"}, {"points": 0}, {"points": 11}, {"points": 2.0},
        {"mask": 1.5}, {"opacity": 1}, {"box": True}, {"size": 1}, {"box": float("nan")},
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=f"perturb.{next(iter(settings))}"):
        PromptPerturbation.of(settings, "perturb")


def test_perturbed_test_set(tmp_path):
    root = write_aim(tmp_path, ["o_1", "o_2"])
    options = {"root": root, "size": 48, "settings": {"kernel_sizes": [3, 5], "point_radius": 3}}
    plain = MattingDataset("AIM-500", training=False, **options)
    perturbed = MattingDataset(
        "AIM-500", training=False, perturb={"box": 0.1, "points": 4, "opacity": True}, **options
    )
    for before, after in zip(plain, perturbed, strict=True):
        assert after["is_trans"] == 1 - before["is_trans"]
        changed = [
            name
            for name, value in before.items()
            if isinstance(value, torch.Tensor) and not torch.equal(value, after[name])
        ]
        boxes_and_points = ["bbox_mask", "bbox_coords", "point_mask", "point_coords"]
        assert sorted(changed) == sorted([*boxes_and_points, "is_trans"])
        moved = (after["bbox_coords"] - before["bbox_coords"]) * 48
        assert (moved[:2] < 0).all() and (moved[2:] > 0).all()
        assert not after["point_coords"][8:].any() and before["point_coords"][8:].any()
    assert perturbed.perturb.describe("bbox_mask") == "sides+0.1,opacity=wrong"
    assert perturbed.perturb.describe("point_mask") == "points=4,opacity=wrong"
    assert perturbed.perturb.describe("mask") == "opacity=wrong"
    with pytest.raises(ConfigError, match="for test sets only"):
        MattingDataset(samples=plain.samples, training=True, perturb={"box": 0.1}, **options)
