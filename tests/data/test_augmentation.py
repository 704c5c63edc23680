"""Augmentation and settings beyond the paper: enabling one does not change the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_trees import PAIR, SETTINGS, random_image, write_aim, write_composition, write_pairs

from SDMatte.data import MattingDataset
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.images.resize import Window, resize_bilinear
from SDMatte.prompts.frozen import PromptFile, freeze
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


COLORS = [{"brightness": 0.4}, {"contrast": 0.4}, {"saturation": 0.4}, {"hue": 0.3}]


@pytest.mark.parametrize("settings", COLORS)
def test_colors_change_the_image_only(pairs, settings):
    plain, changed = natural_sample(pairs), natural_sample(pairs, **settings)
    assert changed_keys(plain, changed) == {"image"}
    assert abs(changed["image"] - plain["image"]).mean() > 0.004
    again = natural_sample(pairs, **settings)
    assert not changed_keys(changed, again)


def test_each_setting_draws_from_its_own_stream(pairs):
    loose = natural_sample(pairs, box_loosen=0.5)
    assert changed_keys(natural_sample(pairs), loose) == {"bbox_mask", "bbox_coords"}


def test_gray_comes_last(pairs):
    image = natural_sample(pairs, hue=0.4, gray_prob=1)["image"]
    assert (image == image[:1]).all()


def test_augmentation_is_for_training_only(pairs):
    settings = {k: v for part in COLORS for k, v in part.items()} | {"flip_prob": 1}
    plain, other = (
        MattingDataset(PAIR, root=pairs, size=32, training=False, settings={**SETTINGS, **more})[0]
        for more in ({}, settings)
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


def test_training_keeps_the_aspect_by_a_crop(pairs):
    whole_image, whole_alpha = read_image(pairs / "image/b.jpg"), read_alpha(pairs / "alpha/b.png")
    heights = set()
    for epoch in range(8):
        sample = natural_sample(pairs, epoch, keep_aspect=True)
        height, width = sample["hw"].tolist()
        assert height == width and 26 <= height <= 40  # the object has 26 pixels
        heights.add(height)
        alpha = (sample["alpha"][0].numpy() + 1) / 2
        # The one window whose part gives this alpha gives the image too.
        fits = [
            window
            for window in (Window(top, left, height, width) for top in range(41 - height)
                           for left in range(61 - width))
            if abs(resize_bilinear(window.cut(whole_alpha), 32) - alpha).max() < 1e-5
        ]  # fmt: skip
        image = resize_bilinear(fits[0].cut(whole_image), 32)
        assert len(fits) == 1
        np.testing.assert_allclose(
            (sample["image"].permute(1, 2, 0).numpy() + 1) * 127.5, image, atol=1e-3
        )
    assert len(heights) > 3


@pytest.mark.parametrize("decode", ["full", "reduced"])
def test_a_given_trimap_is_cropped_like_the_image(tmp_path, decode):
    write_aim(tmp_path)
    alpha = read_alpha(tmp_path / "AIM-500/mask/o_1.png")
    trimap = np.where(alpha > 0.95, 255, np.where(alpha < 0.05, 0, 128)).astype(np.uint8)
    write_image(tmp_path / "AIM-500/trimap/o_1.png", trimap)
    samples = MattingDataset("AIM-500", root=tmp_path, training=False).samples
    dataset = MattingDataset(
        samples=[replace(samples[0], is_trans=0)], root=tmp_path, size=10,
        settings={**SETTINGS, "keep_aspect": True, "decode": decode},
    )  # fmt: skip
    for epoch in range(8):
        sample = dataset[epoch, 0]
        # Nearest and bilinear differ by less than a pixel: an object is where its trimap is.
        agree = (sample["trimap"] > 0) == (sample["alpha"] > 0.5)
        assert agree.float().mean() > 0.85
        assert (sample["trimap"] == 1).any() and (sample["trimap"] == -1).any()


def test_composites_keep_the_aspect(tmp_path):
    write_composition(tmp_path)
    for epoch in range(4):
        dataset = MattingDataset("Composition-1K", root=tmp_path, size=64,
                                 settings={**SETTINGS, "keep_aspect": True})  # fmt: skip
        sample = dataset[epoch, 0]
        height, width = sample["hw"].tolist()
        assert height == width and 60 <= height <= 120
        # A disc stays a disc: as wide as high.
        ys, xs = np.nonzero(sample["alpha"][0].numpy() > 0)
        assert abs(np.ptp(xs) - np.ptp(ys)) <= 1


@pytest.mark.parametrize(("shape", "expected"), [((40, 160), (32, 128)), ((50, 40), (64, 64))])
def test_test_keeps_the_aspect_in_multiples(tmp_path, shape, expected):
    write_pairs(tmp_path, ["a"], shape=shape)
    dataset = MattingDataset(
        PAIR, root=tmp_path, size=64, training=False,
        settings={**SETTINGS, "keep_aspect": True, "size_multiple": 32},
    )  # fmt: skip
    sample = dataset[0]
    assert sample["hw"].tolist() == list(shape)
    for key in ("image", "alpha", *PROMPT_TYPES):
        assert sample[key].shape[1:] == expected, key
    alpha = resize_bilinear(read_alpha(tmp_path / "alpha/a.png"), expected)
    np.testing.assert_allclose((sample["alpha"][0].numpy() + 1) / 2, alpha, atol=1e-6)
    x0, y0, x1, y1 = sample["bbox_coords"].tolist()
    ys, xs = np.nonzero(alpha)
    np.testing.assert_allclose(
        [x0, y0, x1, y1],
        [xs.min() / expected[1], ys.min() / expected[0], xs.max() / expected[1],
         ys.max() / expected[0]], rtol=1e-6,
    )  # fmt: skip


def test_prompt_files_with_keep_aspect(tmp_path):
    write_pairs(tmp_path, ["a"], shape=(40, 160))
    options = {"root": tmp_path, "size": 64, "training": False,
               "settings": {**SETTINGS, "keep_aspect": True, "size_multiple": 32}}  # fmt: skip
    dataset = MattingDataset(PAIR, **options)
    name, key = dataset.prompt_key(dataset.samples[0])
    PromptFile(64, 3, "gauss", {name: {key: freeze(dataset[0])}}).write(tmp_path / "p.json")
    frozen = MattingDataset(PAIR, prompts_from=tmp_path / "p.json", seed=9, **options)
    # Another seed draws other prompts than those in the file.
    assert changed_keys(dataset[0], frozen[0]) <= {"trimap"}


def test_crops_of_large_images_show_the_image(tmp_path):
    write_pairs(tmp_path, ["a"], shape=(300, 500))
    sample = MattingDataset(
        PAIR, root=tmp_path, size=16, settings={**SETTINGS, "keep_aspect": True, "gray_prob": 0}
    )[0]
    assert sample["hw"][0] == sample["hw"][1] and 150 <= sample["hw"][0] <= 300
    colors = np.unique(random_image(0, 300, 500).reshape(-1, 3), axis=0) / 127.5 - 1
    pixels = sample["image"].permute(1, 2, 0).reshape(-1, 3).numpy()
    assert abs(pixels[:, None] - colors[None]).max(axis=2).min(axis=1).mean() < 0.1


def test_loose_boxes_in_test(tmp_path):
    write_aim(tmp_path)
    exact, loose, again = (
        MattingDataset("AIM-500", root=tmp_path, size=64, training=False,
                       settings={**SETTINGS, "box_loosen": loosen})[0]
        for loosen in (0, 0.4, 0.4)
    )  # fmt: skip
    assert torch.equal(loose["bbox_coords"], again["bbox_coords"])
    assert loose["bbox_mask"].sum() > exact["bbox_mask"].sum()
