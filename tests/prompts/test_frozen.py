"""Prompt files: frozen prompts are restored, and errors name their cause."""

import json

import numpy as np
import pytest
import torch
from data_trees import disc, write_aim, write_pairs
from pycocotools import mask as coco

from SDMatte.data import MattingDataset
from SDMatte.errors import ConfigError, DataError
from SDMatte.images.io import write_image
from SDMatte.prompts.frozen import (
    PromptFile,
    decode_mask,
    encode_mask,
    freeze,
    sample_key,
)

SETTINGS = {"kernel_sizes": [3, 5], "point_radius": 3}
DRAWN = ("bbox_mask", "bbox_coords", "point_mask", "point_coords", "mask", "mask_coords")


def aim(root, **options):
    options = {"size": 48, "settings": SETTINGS, "seed": 0, **options}
    return MattingDataset("AIM-500", root=root, training=False, **options)


def save(dataset, path):
    sets = {}
    for index, sample in enumerate(dataset.samples):
        name, key = dataset.prompt_key(sample)
        sets.setdefault(name, {})[key] = freeze(dataset[index])
    radius, psm = dataset.settings.radius(False), dataset.settings.psm
    PromptFile(dataset.size, radius, psm, sets).write(path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = write_aim(tmp_path_factory.mktemp("data"), ["o_1", "o_2", "o_3", "o_4"])
    # No object; and one of a single row, whose box is an empty map.
    write_image(folder / "AIM-500/mask/o_3.png", np.zeros((40, 60)))
    line = np.zeros((48, 48))
    line[20, 5:40] = 1
    for name, array in (("mask", line), ("trimap", line), ("original", np.zeros((48, 48, 3)))):
        suffix = ".jpg" if name == "original" else ".png"
        write_image(folder / f"AIM-500/{name}/o_4{suffix}", array)
    return folder


@pytest.fixture(scope="module")
def saved(root, tmp_path_factory):
    return save(aim(root), tmp_path_factory.mktemp("prompts") / "new" / "prompts.json")


# ------------------------------------------------------------------------- masks


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # by pycocotools
@pytest.mark.parametrize("fill", [0, 1, None])
def test_masks_are_coco_run_lengths(fill):
    mask = np.full((9, 7), fill) if fill is not None else disc(9, 7, 3.3, 0, 1) > 0.5
    mask = mask.astype(bool)
    counts = encode_mask(mask)
    assert (decode_mask(counts, mask.shape) == mask).all()
    theirs = coco.frPyObjects({"size": [9, 7], "counts": counts}, 9, 7)
    assert (coco.decode(theirs) == mask).all()


@pytest.mark.parametrize(
    "counts", [[], [5], [60, 4], [-1, 64], [62.5, 0.5], ["a"], [[63]], [63, 10**30]]
)
def test_damaged_masks_are_refused(counts):
    with pytest.raises(ValueError, match="mask"):
        decode_mask(counts, (9, 7))


# ------------------------------------------------------------------------- files


@pytest.mark.parametrize("psm", ["gauss", "circle"])
def test_frozen_prompts_do_not_depend_on_the_seed(root, tmp_path, psm):
    settings = {**SETTINGS, "psm": psm}
    first = aim(root, settings=settings)
    path = save(first, tmp_path / "prompts.json")
    drawn = aim(root, settings=settings, seed=9)
    frozen = aim(root, settings=settings, seed=9, prompts_from=path)
    differences = 0
    for index in range(4):
        one, other, own = first[index], frozen[index], drawn[index]
        assert one.keys() == other.keys()
        for key in DRAWN:
            assert torch.equal(one[key], other[key]), key
        differences += any(not torch.equal(own[key], one[key]) for key in DRAWN)
    assert differences >= 2  # the seed changes the drawn ones
    assert save(frozen, tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_images_that_keep_their_aspect(root, saved, tmp_path):
    settings = {**SETTINGS, "keep_aspect": True, "size_multiple": 8}
    first = aim(root, settings=settings)
    path = save(first, tmp_path / "prompts.json")
    frozen = aim(root, settings=settings, seed=9, prompts_from=path)
    assert first[0]["alpha"].shape[1] < first[0]["alpha"].shape[2]
    for index in range(4):
        one, other = first[index], frozen[index]
        assert all(torch.equal(one[key], other[key]) for key in DRAWN)
    with pytest.raises(DataError, match="it is for 48x48 pixels, this run has"):
        aim(root, settings=settings, prompts_from=saved)[0]


def test_frozen_prompts_do_not_depend_on_the_alphas(root, saved, tmp_path):
    copy = write_aim(tmp_path, ["o_1", "o_2", "o_3", "o_4"])
    write_image(copy / "AIM-500/mask/o_1.png", disc(radius=5))
    other = aim(copy, prompts_from=saved)[0]
    one = aim(root)[0]
    assert not torch.equal(other["alpha"], one["alpha"])
    assert all(torch.equal(other[key], one[key]) for key in DRAWN)


def test_the_file_is_readable(saved):
    content = json.loads(saved.read_text())
    assert content["version"] == 1 and content["size"] == 48 and content["point_radius"] == 3
    samples = content["sets"]["AIM-500"]
    assert list(samples) == [f"AIM-500/mask/o_{i}.png" for i in (1, 2, 3, 4)]
    entry = samples["AIM-500/mask/o_1.png"]
    assert len(entry["points"]) == 10 and len(entry["box"]) == 4
    assert samples["AIM-500/mask/o_3.png"]["box"] is None
    assert samples["AIM-500/mask/o_3.png"]["points"] == []
    assert samples["AIM-500/mask/o_4.png"]["box"] == [5, 20, 39, 20]
    assert len(saved.read_text().splitlines()) == 4 + 11  # one line per sample
    assert not list(saved.parent.glob(".*"))


def test_keys_of_a_pair_outside_the_root_are_file_names(tmp_path):
    pair = write_pairs(tmp_path / "pair", ["a", "b"])
    item = {"image": str(pair / "image"), "alpha": str(pair / "alpha"), "name": "mine"}
    dataset = MattingDataset(item, root=tmp_path / "data", training=False, size=32)
    assert [dataset.prompt_key(s) for s in dataset.samples] == [
        ("mine", "a.png"),
        ("mine", "b.png"),
    ]
    inside = MattingDataset(item, root=tmp_path, training=False, size=32)
    assert inside.prompt_key(inside.samples[0]) == ("mine", "pair/alpha/a.png")
    assert sample_key("data/x/a.png", "data") == "x/a.png"


# ------------------------------------------------------------------------ errors


def changed(saved, tmp_path, change):
    content = json.loads(saved.read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return path


def test_files_of_other_settings_are_refused(root, saved):
    with pytest.raises(DataError, match=r"is for images of 48 pixels .* this run has 32"):
        aim(root, prompts_from=saved, size=32)
    with pytest.raises(DataError, match=r"is for points of radius 3 .* this run has 4"):
        aim(root, prompts_from=saved, settings={**SETTINGS, "point_radius": 4})
    with pytest.raises(DataError, match=r"is for points drawn as gauss .* this run has circle"):
        aim(root, prompts_from=saved, settings={**SETTINGS, "psm": "circle"})


def test_prompt_files_are_not_for_training(tmp_path, saved):
    write_pairs(tmp_path, ["a"])
    pair = {"image": "image", "alpha": "alpha"}
    with pytest.raises(ConfigError, match="for test sets only"):
        MattingDataset(pair, root=tmp_path, prompts_from=saved)


def test_missing_sets_and_samples_are_named(root, saved, tmp_path):
    def drop(content):
        del content["sets"]["AIM-500"]["AIM-500/mask/o_2.png"]

    with pytest.raises(DataError, match="lacks 1 of the 4 samples of AIM-500.*mask/o_2.png"):
        aim(root, prompts_from=changed(saved, tmp_path, drop))

    def rename(content):
        content["sets"]["AM-2K"] = content["sets"].pop("AIM-500")

    with pytest.raises(DataError, match="lacks the set AIM-500; it has AM-2K"):
        aim(root, prompts_from=changed(saved, tmp_path, rename))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2; this program reads version 1"),
        ({"format": "other"}, "is not a prompt file"),
        ({"sets": []}, "is damaged"),
        ({"size": "48"}, "is for images of 48 pixels"),
    ],
)
def test_damaged_headers(root, saved, tmp_path, change, message):
    path = changed(saved, tmp_path, lambda content: content.update(change))
    with pytest.raises(DataError, match=message):
        aim(root, prompts_from=path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x80PNG"])
def test_files_that_are_not_prompt_files(root, tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="x.json"):
        aim(root, prompts_from=path)
    with pytest.raises(DataError, match="Cannot read the prompt file .*nowhere.json"):
        aim(root, prompts_from=tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "damage",
    [
        {"box": [1, 2, 3]},
        {"box": [1, 2, 3, 48]},
        {"box": [1, 2, 3, 4, 5]},
        {"box": "abcd"},
        {"box": [3, 2, 1, 4]},
        {"box": [1, 4, 3, 2]},
        {"box": [True, 2, 3, 4]},
        {"points": [[1, False]]},
        {"points": [[1, 2]] * 11},
        {"points": [[1]]},
        {"points": [[1, -2]]},
        {"points": None},
        {"mask": None},
        {"mask": {"size": [48, 48], "counts": [7]}},
        {"mask": {"size": [2304, 1], "counts": [2304]}},
    ],
)
def test_damaged_entries(root, saved, tmp_path, damage):
    def change(content):
        content["sets"]["AIM-500"]["AIM-500/mask/o_1.png"].update(damage)

    dataset = aim(root, prompts_from=changed(saved, tmp_path, change))
    with pytest.raises(DataError, match="entry AIM-500, AIM-500/mask/o_1.png of .* is not valid"):
        dataset[0]
