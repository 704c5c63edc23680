"""Samples with augmentation and settings beyond the paper: each leaves the others alone."""

import numpy as np
import pytest
import torch
from data_trees import PAIR, SETTINGS, write_aim, write_pairs

from SDMatte.data import MattingDataset
from SDMatte.images.io import write_image
from SDMatte.prompts.types import PROMPT_TYPES

EVERYTHING = ("image", "alpha", *PROMPT_TYPES, *(p.coords_key for p in PROMPT_TYPES.values()), "hw")


def natural_sample(folder, seed_epoch=3, **settings):
    dataset = MattingDataset(
        PAIR, root=folder, size=32, settings={**SETTINGS, "gray_prob": 0, **settings}
    )
    return dataset[seed_epoch, 1]


def changed_keys(first, second):
    return {key for key in EVERYTHING if not torch.equal(first[key], second[key])}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), ["a", "b"], shape=(40, 60))


def test_each_setting_draws_from_its_own_stream(pairs):
    loose = natural_sample(pairs, box_loosen=0.5)
    assert changed_keys(natural_sample(pairs), loose) == {"bbox_mask", "bbox_coords"}


def test_flips_are_for_training_only(pairs):
    plain, other = (
        MattingDataset(PAIR, root=pairs, size=32, training=False, settings={**SETTINGS, **more})[0]
        for more in ({}, {"flip_prob": 1})
    )
    assert not changed_keys(plain, other)


def test_a_flip_mirrors_everything(tmp_path):
    write_aim(tmp_path)
    samples = MattingDataset("AIM-500", root=tmp_path, training=False).samples
    trimap = np.tile(np.uint8([0] * 20 + [128] * 30 + [255] * 10), (40, 1))
    write_image(tmp_path / "AIM-500/trimap/o_1.png", trimap)
    plain, flipped = (
        MattingDataset(samples=samples, root=tmp_path, size=32,
                       settings={**SETTINGS, "gray_prob": 0, "flip_prob": p})[0, 0]
        for p in (0, 1)
    )  # fmt: skip
    for key in ("image", "alpha", "trimap"):
        torch.testing.assert_close(flipped[key], plain[key].flip(-1), rtol=0, atol=1e-5, msg=key)
    assert not torch.equal(flipped["trimap"], plain["trimap"])
    assert flipped["image"].is_contiguous()
    # Prompts are drawn from the flipped alpha: points lie where it is solid.
    for x, y in (flipped["point_coords"].reshape(10, 2) * 32).round().long().tolist():
        assert flipped["alpha"][0, y, x] > 0.6


def test_flips_are_drawn_by_their_probability(pairs):
    dataset = MattingDataset(
        PAIR, root=pairs, size=8, settings={**SETTINGS, "gray_prob": 0, "flip_prob": 0.25}
    )
    plain = MattingDataset(PAIR, root=pairs, size=8, settings={**SETTINGS, "gray_prob": 0})
    flips = sum(
        not torch.equal(dataset[epoch, 0]["image"], plain[epoch, 0]["image"])
        for epoch in range(200)
    )
    assert abs(flips - 50) < 25


def test_loose_boxes_in_test(tmp_path):
    write_aim(tmp_path)
    exact, loose, again = (
        MattingDataset("AIM-500", root=tmp_path, size=64, training=False,
                       settings={**SETTINGS, "box_loosen": loosen})[0]
        for loosen in (0, 0.4, 0.4)
    )  # fmt: skip
    assert torch.equal(loose["bbox_coords"], again["bbox_coords"])
    assert loose["bbox_mask"].sum() > exact["bbox_mask"].sum()
