"""Samples: keys, shapes, ranges, seeds, bad files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_trees import (
    PAIR,
    SETTINGS,
    disc,
    random_image,
    write_aim,
    write_backgrounds,
    write_composition,
    write_pairs,
)

from SDMatte.data import MattingDataset, Sample
from SDMatte.errors import ConfigError, DataError
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.images.resize import resize_bilinear
from SDMatte.prompts.types import PROMPT_TYPES


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_composition(folder)
    write_aim(folder)
    (folder / "txt").mkdir()
    (folder / "txt/Composition-1K_transparent_samples.txt").write_text("y.png\n")
    return folder


def train_set(root, **options):
    options = {"size": 32, "settings": SETTINGS, **options}
    return MattingDataset("Composition-1K", root=root, **options)


def test_set(root, **options):
    options = {"size": 32, "settings": SETTINGS, **options}
    return MattingDataset("AIM-500", root=root, training=False, **options)


test_set.__test__ = False


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


@pytest.mark.parametrize("make", [train_set, test_set])
def test_keys_shapes_and_ranges(root, make):
    sample = make(root)[1]
    maps = {"alpha", *PROMPT_TYPES}
    for key in maps | {"image"}:
        assert sample[key].shape == (3 if key == "image" else 1, 32, 32), key
        assert sample[key].dtype == torch.float32 and sample[key].is_contiguous()
        assert -1 <= sample[key].min() and sample[key].max() <= 1
    for prompt in PROMPT_TYPES.values():
        coords = sample[prompt.coords_key]
        assert coords.shape == (20 if prompt.is_point else 4,) and coords.dtype == torch.float32
        assert coords.min() >= 0 and coords.max() <= 1
        if prompt.fixed:
            assert coords.tolist() == [0, 0, 1, 1]
    assert (sample["auto_mask"] == 1).all()
    assert set(sample["trimap"].unique().tolist()) <= {-1, 0, 1}
    for key in ("mask", "bbox_mask"):
        assert set(sample[key].unique().tolist()) == {-1, 1}
    assert sample["point_mask"].max() == 1 and sample["point_mask"].min() < -0.9
    assert sample["is_trans"].dtype == torch.int64 and sample["is_trans"].shape == ()
    assert sample["hw"].dtype == torch.int64
    assert sample["caption"] == ""
    others = {"is_trans", "hw", "caption", "image_name", "dataset"}
    paths = {"image_path", "alpha_path", "trimap_path"}
    assert sample.keys() == maps | {"image"} | others | paths | {
        p.coords_key for p in PROMPT_TYPES.values()
    }


def test_test_samples_are_the_resized_files(root):
    sample = test_set(root)[1]
    folder = root / "AIM-500"
    image = resize_bilinear(read_image(folder / "original/o_2.jpg"), 32)
    np.testing.assert_allclose((sample["image"].permute(1, 2, 0) + 1) * 127.5, image, atol=1e-3)
    alpha = resize_bilinear(read_alpha(folder / "mask/o_2.png"), 32)
    np.testing.assert_allclose((sample["alpha"][0] + 1) / 2, alpha, atol=1e-6)
    # 10 of 40 rows are background, the last 5 foreground.
    assert sample["trimap"][0, :, 5].tolist() == [-1] * 8 + [0] * 20 + [1] * 4
    assert sample["hw"].tolist() == [40, 60]
    assert sample["image_name"] == "o_2.png"
    assert sample["alpha_path"] == str(folder / "mask/o_2.png")
    assert Path(sample["image_path"]).stem == "o_2"
    assert sample["trimap_path"] == str(folder / "trimap/o_2.png")
    assert sample["dataset"] == "AIM-500"


def test_composite_holds_two_copies_and_one_target(root):
    dataset = train_set(root, settings={**SETTINGS, "gray_prob": 0})
    sides = set()
    for epoch in range(12):
        sample = dataset[epoch, 4]
        assert sample["hw"].tolist() == [40, 120] and sample["trimap_path"] == ""
        left, right = sample["alpha"][0].split(16, dim=1)
        assert (left.max() > 0.9) != (right.max() > 0.9)
        side = int(right.max() > 0.9)
        sides.add(side)
        x0, _, x1, _ = sample["bbox_coords"].tolist()
        assert (x0 >= 0.5) == (x1 >= 0.5) == bool(side)
        image = (sample["image"][:, 10:22] + 1) / 2  # both copies show the foreground's middle
        fg = resize_bilinear(random_image(1), 32)[10:22] / 255
        np.testing.assert_allclose(image[:, :, 8].T, fg[:, 16], atol=0.15)
        np.testing.assert_allclose(image[:, :, 24].T, fg[:, 16], atol=0.15)
    assert sides == {0, 1}
    single = train_set(root, settings={**SETTINGS, "duplicate_prob": 0})[0]
    assert single["hw"].tolist() == [40, 60]


def test_transparency_by_list_rule_and_record(root, tmp_path):
    assert [int(train_set(root)[i]["is_trans"]) for i in (0, 3, 6)] == [0, 1, 0]
    write_image(tmp_path / "glass.png", disc() * 0.5)
    write_image(tmp_path / "wood.png", disc())
    write_image(tmp_path / "i.png", random_image(0))
    samples = [
        Sample("s", "i.png", "glass.png"),
        Sample("s", "i.png", "wood.png"),
        Sample("s", "i.png", "wood.png", is_trans=1, caption="a disc"),
    ]
    dataset = MattingDataset(samples=samples, root=tmp_path, size=32, training=False)
    assert [int(dataset[i]["is_trans"]) for i in range(3)] == [1, 0, 1]
    assert dataset[2]["caption"] == "a disc"


def test_gray_only_in_training(tmp_path):
    write_pairs(tmp_path, [f"{i:02d}" for i in range(5)])

    def count(training, epochs, **settings):
        dataset = MattingDataset(
            PAIR, root=tmp_path, size=8, training=training, settings={**SETTINGS, **settings}
        )
        samples = [dataset[epoch, i]["image"] for epoch in range(epochs) for i in range(5)]
        return sum(bool((image == image[:1]).all()) for image in samples)

    assert abs(count(True, 50) - 50) < 24  # one in five of 250
    assert count(True, 4, gray_prob=0) == 0 and count(False, 4, gray_prob=1) == 0
    assert count(True, 4, gray_prob=1) == 20


def test_training_samples_are_squares_and_keep_hw(tmp_path):
    write_pairs(tmp_path, ["a"], shape=(50, 20))
    dataset = MattingDataset(PAIR, root=tmp_path, size=16)
    assert dataset[0]["hw"].tolist() == [50, 20] and dataset[0]["image"].shape == (3, 16, 16)


# ------------------------------------------------------------------ randomness


def test_a_sample_depends_only_on_seed_epoch_and_index(root):
    dataset, again = train_set(root, seed=5), train_set(root, seed=5)
    np.random.seed(1)
    torch.manual_seed(1)
    first = [dataset[2, i] for i in range(9)]
    for i in reversed(range(9)):
        assert_same(first[i], again[2, i])
    assert_same(dataset[0, 3], dataset[3])
    changed = [dataset[3, 4], train_set(root, seed=6)[2, 4]]
    for other in changed:
        assert not torch.equal(other["point_coords"], first[4]["point_coords"])


def test_stages_draw_independently(root):
    plain = train_set(root)[1, 2]
    other = train_set(root, settings={**SETTINGS, "psm": "circle", "gray_prob": 1})[1, 2]
    for key in ("alpha", "trimap", "mask", "bbox_mask", "point_coords"):
        assert torch.equal(plain[key], other[key]), key
    assert not torch.equal(plain["point_mask"], other["point_mask"])


def test_streams_are_seeded_by_the_sample(root):
    dataset = train_set(root, seed=5)
    draws = dataset.streams(4, 2)
    assert draws["box"].random() == dataset.streams(4, 2)["box"].random()
    firsts = {name: rng.random() for name, rng in dataset.streams(4, 2).items()}
    assert len(set(firsts.values())) == len(firsts)
    # New stages are appended: the streams of the published steps do not change.
    seeds = np.random.SeedSequence((0, 5, 2, 4)).spawn(6)
    expected = [np.random.default_rng(seed).random() for seed in seeds]
    steps = ("composite", "trimap", "mask", "box", "point", "gray")
    assert [firsts[step] for step in steps] == expected


def test_test_prompts_depend_only_on_the_name(root, tmp_path):
    dataset = test_set(root)
    whole = {s["image_name"]: s for s in (dataset[i] for i in range(3))}
    assert_same(dataset[7, 1], whole["o_2.png"])  # in any epoch
    part = MattingDataset(samples=dataset.samples[1:2], root=root, size=32, training=False)
    part.settings = dataset.settings
    assert_same(part[0], whole["o_2.png"])
    other_seed = test_set(root, seed=1)[1]
    assert not torch.equal(other_seed["point_coords"], whole["o_2.png"]["point_coords"])
    assert torch.equal(other_seed["bbox_coords"], whole["o_2.png"]["bbox_coords"])


# ------------------------------------------------------------------- bad files


def bad_tree(root):
    write_pairs(root, [f"{i}" for i in range(6)])
    (root / "image/1.jpg").write_bytes((root / "image/1.jpg").read_bytes()[:300])
    (root / "alpha/2.png").write_bytes(b"")
    write_image(root / "alpha/4.png", disc(41, 60))
    return PAIR


def test_training_uses_the_next_readable_sample(tmp_path, caplog):
    dataset = MattingDataset(bad_tree(tmp_path), root=tmp_path, size=16, max_bad_samples=3)
    names = [dataset[1, i]["image_name"] for i in range(6)]
    assert names == ["0.png", "3.png", "3.png", "3.png", "5.png", "5.png"]
    assert_same(dataset[1, 1], dataset[1, 3])
    assert caplog.text.count("Skipping a sample") == 3
    assert "1.jpg" in caplog.text and "2.png" in caplog.text
    assert "60x40 pixels, but its alpha" in caplog.text


def test_training_fails_at_the_limit(tmp_path):
    dataset = MattingDataset(bad_tree(tmp_path), root=tmp_path, size=16, max_bad_samples=2)
    for _ in range(3):
        assert dataset[1]["image_name"] == "3.png"  # each counts once
    with pytest.raises(DataError, match=r"3 training samples cannot be read, 2 are allowed.*4"):
        dataset[4]


def test_training_fails_if_nothing_is_readable(tmp_path):
    pair = bad_tree(tmp_path)
    for path in (tmp_path / "alpha").iterdir():
        path.write_text("x")
    with pytest.raises(
        DataError, match="No training sample of pair can be read. The first .*0.png"
    ):
        MattingDataset(pair, root=tmp_path, size=16)[0]


def test_a_file_that_was_deleted(tmp_path):
    write_pairs(tmp_path, ["0", "1"])
    dataset = MattingDataset(PAIR, root=tmp_path, size=16)
    (tmp_path / "image/0.jpg").unlink()
    assert dataset[0]["image_name"] == "1.png"


@pytest.mark.parametrize(("index", "name"), [(1, "1.jpg"), (2, "2.png"), (4, "4.jpg")])
def test_a_test_fails_with_the_name(tmp_path, index, name):
    dataset = MattingDataset(bad_tree(tmp_path), root=tmp_path, size=16, training=False)
    with pytest.raises(DataError, match=name):
        dataset[index]


def test_a_bad_background_is_named(tmp_path, caplog):
    write_composition(tmp_path, ("x",), backgrounds=3)
    (tmp_path / "BG-20K/train/b01.jpg").write_text("no image")
    assert train_set(tmp_path)[1]["image_name"] == "x.png"
    assert "b01.jpg" in caplog.text


def test_a_trimap_of_another_size_is_refused(tmp_path):
    write_aim(tmp_path)
    write_image(tmp_path / "AIM-500/trimap/o_1.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"trimap/o_1\.png has 9x9 pixels"):
        test_set(tmp_path)[0]


def test_empty_and_full_alphas(tmp_path):
    write_image(tmp_path / "i.png", random_image(0))
    write_image(tmp_path / "empty.png", np.zeros((40, 60), np.uint8))
    write_image(tmp_path / "full.png", np.full((40, 60), 255, np.uint8))
    write_backgrounds(tmp_path, 1, "back")
    samples = [Sample("s", "i.png", f"{n}.png", background=b) for n in ("empty", "full")
               for b in ("", "back/b00.jpg")]  # fmt: skip
    for training in (True, False):
        dataset = MattingDataset(samples=samples, root=tmp_path, size=32, training=training)
        for i in range(4):
            assert all(v.isfinite().all() for v in dataset[i].values() if torch.is_tensor(v))
    empty = dataset[0]
    assert (empty["bbox_mask"] == -1).all() and empty["bbox_coords"].tolist() == [0, 0, 1, 1]
    assert (empty["point_mask"] == -1).all() and not empty["point_coords"].any()


# ---------------------------------------------------------------- construction


def test_the_environment_overrides_the_config(root, monkeypatch):
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(root))
    assert train_set("/not/there")[0]["alpha_path"].startswith(str(root))


def test_limit_and_index_range(root):
    dataset = test_set(root, limit=2)
    assert len(dataset) == 2 and dataset[-1]["image_name"] == "o_2.png"
    with pytest.raises(IndexError):
        dataset[2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"settings": {"psm": "square"}}, "psm must be"),
        ({"size": 0}, "size must be at least 1; got 0"),
        ({"size": "512"}, "size must be an integer; got '512'"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"seed": None}, "seed must be an integer; got None"),
        ({"limit": 0}, "limit must be at least 1; got 0"),
        ({"max_bad_samples": "x"}, "max_bad_samples must be an integer"),
        ({"settings": 5}, "dataset.settings must be a mapping; got 5"),
        ({"samples": []}, "either names or samples"),
    ],
)
def test_invalid_settings(root, options, reason):
    with pytest.raises(ConfigError, match=reason):
        train_set(root, **options)


def test_non_ascii_names_with_spaces(tmp_path):
    write_pairs(tmp_path / "köln 東京", ["ä b", "ñ"])
    pair = {"image": "köln 東京/image", "alpha": "köln 東京/alpha"}
    dataset = MattingDataset(pair, root=tmp_path, size=16, training=False)
    assert [dataset[i]["image_name"] for i in range(2)] == ["ä b.png", "ñ.png"]
    assert Path(dataset[0]["alpha_path"]).is_file()
