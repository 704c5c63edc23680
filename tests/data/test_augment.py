"""Augmentation that is off by default, and that each part of it leaves the others alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_trees import disc, picture, write_aim, write_composition, write_pairs

from SDMatte.data import DataSettings, MattingDataset
from SDMatte.data.augment import change_look, crop_window
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.images.resize import Window, resize_bilinear
from SDMatte.prompts.frozen import PromptFile, freeze
from SDMatte.prompts.maps import box_prompt, loosen_box
from SDMatte.prompts.types import PROMPT_TYPES

SETTINGS = {"kernel_sizes": [3, 5], "point_radius": 3}
PAIR = {"image": "image", "alpha": "alpha"}
IMAGE = np.random.default_rng(0).random((12, 16, 3), np.float32)


def streams(seed=0):
    return {name: np.random.default_rng((seed, i)) for i, name in
            enumerate(("colour", "soften", "jpeg"))}  # fmt: skip


# ------------------------------------------------------------------------ crop


def windows_of(box, shape, count=400):
    return [crop_window(box, shape, np.random.default_rng(i)) for i in range(count)]


@pytest.mark.parametrize("box", [(10, 20, 29, 49), (0, 0, 0, 0), (150, 80, 199, 99), None])
def test_crops_are_squares_that_hold_the_object(box):
    windows = windows_of(box, (100, 200))
    for top, left, height, width in windows:
        assert height == width and 50 <= height <= 100
        assert 0 <= top <= 100 - height and 0 <= left <= 200 - width
        if box is not None:
            assert left <= box[0] and box[2] < left + width
            assert top <= box[1] and box[3] < top + height
    sides = {window.height for window in windows}
    assert {50, 100} <= sides  # both ends
    lefts = {window.left for window in windows}
    if box is None:
        assert {0, 100} <= lefts
    else:  # at either edge of the object
        assert box[0] in lefts and len(lefts) > (10 if box[0] else 0)


def test_a_crop_is_not_smaller_than_the_object():
    sides = [window.height for window in windows_of((20, 10, 99, 39), (100, 200))]
    assert min(sides) == 80 and max(sides) == 100


def test_of_an_object_that_is_too_wide_a_crop_shows_as_much_as_fits():
    windows = windows_of((20, 40, 179, 59), (100, 200))
    assert {w.height for w in windows} == {100} and {w.top for w in windows} == {0}
    # Filled by the object from side to side.
    lefts = {w.left for w in windows}
    assert min(lefts) == 20 and max(lefts) == 80 and len(lefts) > 50


def test_crops_of_pictures_of_one_pixel_and_of_whole_objects():
    assert crop_window(None, (1, 1), np.random.default_rng(0)) == (0, 0, 1, 1)
    assert crop_window((0, 0, 19, 9), (10, 20), np.random.default_rng(0)).height == 10


# ------------------------------------------------------------------------ look


def test_nothing_switched_on_changes_nothing():
    assert change_look(IMAGE, streams(), DataSettings()) is IMAGE


def test_brightness_by_hand():
    settings = DataSettings(brightness=0.5)
    factors = []
    for seed in range(300):
        changed = change_look(np.full((2, 2, 3), 0.4, np.float32), streams(seed), settings)
        assert np.ptp(changed) == 0
        factors.append(changed[0, 0, 0] / 0.4)
    np.testing.assert_allclose(
        np.quantile(factors, [0, 0.25, 0.5, 0.75, 1]), [0.5, 0.75, 1, 1.25, 1.5], atol=0.08
    )


def test_contrast_saturation_and_hue_by_what_they_keep():
    contrast = change_look(IMAGE * 0.2 + 0.4, streams(), DataSettings(contrast=0.9))
    gray = contrast @ np.float32([0.299, 0.587, 0.114])
    assert (
        abs(gray.mean() - ((IMAGE * 0.2 + 0.4) @ np.float32([0.299, 0.587, 0.114])).mean()) < 0.01
    )
    assert abs(contrast.std() / (IMAGE * 0.2).std() - 1) > 0.05
    colourless = np.repeat(IMAGE[..., :1], 3, axis=2)
    for settings in (DataSettings(saturation=0.9), DataSettings(hue=0.4)):
        np.testing.assert_allclose(
            change_look(colourless, streams(), settings), colourless, atol=1e-3
        )
        assert abs(change_look(IMAGE, streams(), settings) - IMAGE).mean() > 0.01
    turned = change_look(IMAGE, streams(), DataSettings(hue=0.4))
    np.testing.assert_allclose(turned.max(axis=2), IMAGE.max(axis=2), atol=1e-5)  # the value


def test_softening_is_a_gaussian():
    impulse = np.zeros((41, 41, 3), np.float32)
    impulse[20, 20] = 1
    soft = change_look(impulse, streams(), DataSettings(soften_prob=1, soften_sigma=[2.0, 2.0]))
    np.testing.assert_allclose(soft[20, 22] / soft[20, 20], np.exp(-0.5), rtol=1e-4)
    np.testing.assert_allclose(soft.sum(axis=(0, 1)), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 30, 3), (12, 16, 3)])
def test_every_shape_and_range(shape):
    settings = DataSettings(brightness=1, contrast=1, saturation=1, hue=0.5, soften_prob=1,
                            soften_sigma=[3, 3], jpeg_prob=1, jpeg_quality=[1, 100])  # fmt: skip
    image = np.random.default_rng(0).random(shape, np.float32)
    copy = image.copy()
    for seed in range(5):
        changed = change_look(image, streams(seed), settings)
        assert changed.shape == shape and changed.dtype == np.float32
        assert 0 <= changed.min() and changed.max() <= 1
    np.testing.assert_array_equal(image, copy)


def test_jpeg_quality():
    smooth = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None].repeat(64, 0).repeat(3, 2)
    errors = [
        abs(change_look(smooth, streams(), DataSettings(jpeg_prob=1, jpeg_quality=[q, q])) - smooth)
        for q in (100, 5)
    ]
    assert errors[0].max() < 0.02 < errors[1].max()


def test_how_often():
    settings = DataSettings(soften_prob=0.3, soften_sigma=[2, 2])
    changed = [change_look(IMAGE, streams(i), settings) is not IMAGE for i in range(1000)]
    assert abs(sum(changed) - 300) < 60


# ----------------------------------------------------------------- looser boxes


def test_loosening_goes_outwards_and_each_side_by_itself():
    box, shape = (100, 200, 299, 299), (1000, 1000)
    moved = np.array(
        [loosen_box(box, shape, np.random.default_rng(i), 0.2) for i in range(2000)]
    ) - np.array(box)
    outwards = moved * (-1, -1, 1, 1)
    # Up to .2 of 199 and of 99 pixels, evenly.
    assert outwards.min() == 0 and outwards.max(axis=0).tolist() == [40, 20, 40, 20]
    np.testing.assert_allclose(outwards.mean(axis=0), [19.9, 9.9, 19.9, 9.9], rtol=0.05)
    assert (abs(np.corrcoef(outwards.T) - np.eye(4)) < 0.09).all()


def test_loose_boxes_stay_in_the_picture_and_leave_the_jitter_alone():
    rng = np.random.default_rng(0)
    assert loosen_box((0, 0, 39, 19), (20, 40), rng, 5) == (0, 0, 39, 19)
    alpha = disc(100, 100, 20)
    for seed in range(20):
        plain = box_prompt(alpha, np.random.default_rng(seed), 0.1).coords
        loose = box_prompt(alpha, np.random.default_rng(seed), 0.1, 0.5).coords
        assert (loose[:2] <= plain[:2]).all() and (loose[2:] >= plain[2:]).all()
    assert (loose != plain).any()


def test_loose_boxes_in_test(tmp_path):
    write_aim(tmp_path)
    exact, loose, again = (
        MattingDataset("AIM-500", root=tmp_path, size=64, training=False,
                       settings={**SETTINGS, "box_loosen": loosen})[0]
        for loosen in (0, 0.4, 0.4)
    )  # fmt: skip
    assert torch.equal(loose["bbox_coords"], again["bbox_coords"])
    assert loose["bbox_mask"].sum() > exact["bbox_mask"].sum()


# ------------------------------------------------------------------- in samples

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


LOOK = [{"brightness": 0.4}, {"contrast": 0.4}, {"saturation": 0.4}, {"hue": 0.3},
        {"soften_prob": 1}, {"jpeg_prob": 1}]  # fmt: skip


@pytest.mark.parametrize("settings", LOOK)
def test_a_new_look_changes_the_image_alone(pairs, settings):
    plain, changed = natural_sample(pairs), natural_sample(pairs, **settings)
    assert changed_keys(plain, changed) == {"image"}
    assert abs(changed["image"] - plain["image"]).mean() > 0.004
    again = natural_sample(pairs, **settings)
    assert not changed_keys(changed, again)


def test_what_is_drawn_for_one_does_not_depend_on_another(pairs):
    # The JPEG of a picture that is brightened too is that of the brightened picture.
    both = natural_sample(pairs, brightness=0.4, jpeg_prob=1)["image"]
    bright = natural_sample(pairs, brightness=0.4)["image"]
    assert 0 < abs(both - bright).mean() < 0.1
    loose = natural_sample(pairs, box_loosen=0.5)
    assert changed_keys(natural_sample(pairs), loose) == {"bbox_mask", "bbox_coords"}


def test_gray_comes_last(pairs):
    image = natural_sample(pairs, hue=0.4, gray_prob=1)["image"]
    assert (image == image[:1]).all()


def test_nothing_of_it_happens_in_test(pairs):
    settings = {k: v for part in LOOK for k, v in part.items()} | {"flip_prob": 1}
    plain, other = (
        MattingDataset(PAIR, root=pairs, size=32, training=False, settings={**SETTINGS, **more})[0]
        for more in ({}, settings)
    )
    assert not changed_keys(plain, other)


@pytest.mark.numerics
def test_a_flip_turns_everything(tmp_path):
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
    # Prompts are drawn of the flipped alpha: points lie where it is solid.
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


# ------------------------------------------------------------------ keep_aspect


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
def test_a_given_trimap_is_cut_alike(tmp_path, decode):
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


def test_prompt_files_go_with_keep_aspect(tmp_path):
    write_pairs(tmp_path, ["a"], shape=(40, 160))
    options = {"root": tmp_path, "size": 64, "training": False,
               "settings": {**SETTINGS, "keep_aspect": True, "size_multiple": 32}}  # fmt: skip
    dataset = MattingDataset(PAIR, **options)
    name, key = dataset.prompt_key(dataset.samples[0])
    PromptFile(64, 3, "gauss", {name: {key: freeze(dataset[0])}}).write(tmp_path / "p.json")
    frozen = MattingDataset(PAIR, prompts_from=tmp_path / "p.json", seed=9, **options)
    # Another seed draws other prompts, but for those in the file.
    assert changed_keys(dataset[0], frozen[0]) <= {"trimap"}


def test_crops_of_large_pictures_show_the_picture(tmp_path):
    # The grid of a composite, and a plain resize of a natural picture, see the same part.
    write_pairs(tmp_path, ["a"], shape=(300, 500))
    sample = MattingDataset(
        PAIR, root=tmp_path, size=16, settings={**SETTINGS, "keep_aspect": True, "gray_prob": 0}
    )[0]
    assert sample["hw"][0] == sample["hw"][1] and 150 <= sample["hw"][0] <= 300
    colours = np.unique(picture(0, 300, 500).reshape(-1, 3), axis=0) / 127.5 - 1
    pixels = sample["image"].permute(1, 2, 0).reshape(-1, 3).numpy()
    assert abs(pixels[:, None] - colours[None]).max(axis=2).min(axis=1).mean() < 0.1
