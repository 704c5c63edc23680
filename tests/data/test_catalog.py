"""Layouts of the known sets as trees on disk, and invalid data sets."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_trees import PAIR, touch, write_aim, write_backgrounds, write_composition, write_pairs

from SDMatte.data import MattingDataset
from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS, data_root, list_samples
from SDMatte.data.listing import Sample
from SDMatte.errors import ConfigError, DataError, MissingFileError
from SDMatte.images.io import write_image
from SDMatte.runtime.config import build, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_data_root(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert data_root("~/sets") == Path("/home/me/sets")
    assert data_root() == Path("data/datasets")
    assert data_root("somewhere") == Path("somewhere")
    monkeypatch.setenv("SDMATTE_DATA_ROOT", "/over/all")
    assert data_root("somewhere") == data_root() == Path("/over/all")


def test_composition(tmp_path):
    write_composition(tmp_path, ("b c", "ä", "a.1"), backgrounds=4)
    samples = list_samples("Composition-1K", tmp_path)
    folder = "Combined_Dataset/Training_set"
    assert [Path(s.alpha).stem for s in samples] == ["a.1"] * 3 + ["b c"] * 3 + ["ä"] * 3
    # Composite i of foreground f takes background (3 f + i) mod 4.
    names = [Path(s.background).name for s in samples]
    assert names == [f"b{i % 4:02d}.jpg" for i in range(9)]
    assert samples[0] == Sample(
        "Composition-1K",
        f"{folder}/combined_fg/a.1.png",
        f"{folder}/combined_alpha/a.1.png",
        background="BG-20K/train/b00.jpg",
    )
    assert samples[0].background


def test_aim(tmp_path):
    write_aim(tmp_path)
    samples = list_samples(["AIM-500"], tmp_path, training=False)
    assert samples[1] == Sample(
        "AIM-500", "AIM-500/original/o_2.jpg", "AIM-500/mask/o_2.png", "AIM-500/trimap/o_2.png"
    )
    assert len(samples) == 3 and not samples[1].background


def write_full_size_trees(root):
    """Write trees of the published sizes; all files are links to one of 1 x 1 pixel."""
    write_image(root / "one.png", np.full((1, 1), 255, np.uint8))

    def fill(folder, stems, **parts):
        for part, suffix in parts.items():
            (root / folder / part).mkdir(parents=True)
            for stem in stems:
                os.link(root / "one.png", root / folder / part / (stem + suffix))

    def numbers(count):
        return [f"{i:05d}" for i in range(count)]

    fill("Combined_Dataset/Training_set", numbers(431), combined_fg=".png", combined_alpha=".png")
    fill("Distinctions-646/Train", numbers(596), FG=".png", GT=".png")
    fill("AM-2K/train", numbers(1800), original=".jpg", fg=".png", mask=".png")
    fill("UHRSD/UHRSD_TR_2K", numbers(4932), image=".jpg", mask=".png")
    fill("UHRSD/UHRSD_TE_2K", numbers(988), image=".jpg", mask=".png")
    fill("RefMatte/RefMatte/train", [f"rim_train_{i:08d}" for i in range(600)], img=".jpg")
    masks = [f"rim_train_{i:08d}_{k}" for i in range(600) for k in range(18)]
    fill("RefMatte/RefMatte/train", masks, mask=".png")
    fill("BG-20K", ["a", "b"], train=".jpg", testval=".jpg")


@pytest.mark.slow
def test_the_published_schedule_has_24401_samples(tmp_path):
    write_full_size_trees(tmp_path)
    config = load_config(CONFIGS / "SDMatte.py")
    names = list(config.dataloader.train.dataset.names)
    dataset = MattingDataset(names, root=tmp_path, size=8)
    assert Counter(s.dataset for s in dataset.samples) == {
        "Composition-1K": 431 * 3,
        "DIS-646": 596 * 3,
        "AM-2K": 1800 + 1800 * 2,
        "RefMatte": 10_000,
        "UHRSD": 4932 + 988,
    }
    assert len(dataset) == 24_401
    for i in range(0, len(dataset), 2000):
        assert (dataset[i]["alpha"].max(), dataset[i]["image"].min()) == (1, 1)

    refmatte = [s for s in dataset.samples if s.dataset == "RefMatte"]
    assert all(Path(s.image).stem == Path(s.alpha).stem.rpartition("_")[0] for s in refmatte)
    assert len({s.alpha for s in refmatte}) == 10_000
    assert refmatte == list_samples("RefMatte", tmp_path)  # with a fixed seed
    released = [{"name": "AM-2K", "composites": 4} if name == "AM-2K" else name for name in names]
    assert len(list_samples(released, tmp_path)) == 28_001
    star = load_config(CONFIGS / "SDMatte_star.py").dataloader.train.dataset.names
    assert len(list_samples([n for n in star if n != "COCO-Matting"], tmp_path)) == 8_481


def test_am2k_natural_and_composite(tmp_path):
    folder = write_pairs(tmp_path / "AM-2K/train", ["m_1"], "original", "mask")
    write_pairs(folder, ["m_1"], "fg", "mask", ".png")
    write_backgrounds(tmp_path)
    natural, *composites = list_samples("AM-2K", tmp_path)
    assert (natural.image, natural.background) == ("AM-2K/train/original/m_1.jpg", "")
    assert [(c.image, c.alpha) for c in composites] == [
        ("AM-2K/train/fg/m_1.png", "AM-2K/train/mask/m_1.png")
    ] * 2
    assert {s.is_trans for s in (natural, *composites)} == {0}


def test_trans460(tmp_path):
    write_pairs(tmp_path / "Transparent-460/Train", ["t"], "fg", "alpha")
    write_backgrounds(tmp_path)
    touch(tmp_path, "txt/Trans-460_transparent_samples.txt")  # an empty list has no effect
    samples = list_samples("Trans-460", tmp_path)
    assert [bool(s.background) for s in samples] == [False] + [True] * 5
    assert all(s.is_trans == 1 and s.image.endswith("fg/t.jpg") for s in samples)


@pytest.mark.parametrize(
    ("name", "training", "folder", "image", "alpha"),
    [
        ("P3M-10K", True, "P3M-10k/train", "blurred_image", "mask"),
        ("RWP-636", True, "RealWorldPortrait-636", "image", "alpha"),
        ("P3M-500-NP", False, "P3M-10k/validation/P3M-500-NP", "original_image", "mask"),
        ("UHRSD", False, "UHRSD/UHRSD_TE_2K", "image", "mask"),
    ],
)
def test_natural_sets(tmp_path, name, training, folder, image, alpha):
    write_pairs(tmp_path / folder, ["p_1", "p_2"], image, alpha)
    samples = list_samples(name, tmp_path, training)
    assert [s.image for s in samples] == [f"{folder}/{image}/p_{i}.jpg" for i in (1, 2)]
    assert [s.alpha for s in samples] == [f"{folder}/{alpha}/p_{i}.png" for i in (1, 2)]
    assert {s.is_trans for s in samples} == {None if name == "UHRSD" else 0}
    assert not any(s.trimap or s.background or s.caption for s in samples)


@pytest.mark.parametrize("name", ["AM-2K", "Trans-460", "Composition-1K"])
def test_test_sets_with_trimap(tmp_path, name):
    entry = TEST_SETS[name]
    folder = write_pairs(tmp_path / entry.folder, ["p 1"], entry.image, entry.alpha)
    touch(folder, f"{entry.trimap}/p 1.png")
    (sample,) = list_samples(name, tmp_path, training=False)
    assert sample.trimap == f"{entry.folder}/{entry.trimap}/p 1.png"
    assert sample.is_trans == {"AM-2K": 0, "Trans-460": 1, "Composition-1K": None}[name]


def test_a_data_root_with_spaces_and_non_ascii_letters(tmp_path, monkeypatch):
    root = write_composition(tmp_path / "my sets/köln 東京", ("b c", "ä"))
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(root))
    samples = list_samples("Composition-1K", "elsewhere")
    assert [Path(s.alpha).name for s in samples[::3]] == ["b c.png", "ä.png"]
    assert all((root / s.alpha).is_file() and (root / s.background).is_file() for s in samples)


def test_refmatte_list_file(tmp_path):
    base = "RefMatte/RefMatte/train"
    stems = [f"rim_train_{i:08d}" for i in range(3)]
    touch(tmp_path, *(f"{base}/img/{s}.jpg" for s in stems))
    touch(tmp_path, *(f"{base}/mask/{s}_{k}.png" for s in stems for k in (0, 1)))
    (tmp_path / "my.txt").write_text(
        "rim_train_00000002_1.png\n\n"
        f"{base}/mask/rim_train_00000000_0.png\n"
        f"/old/disk/{base}/mask/rim_train_00000001_0.png\n"
    )
    item = {"name": "RefMatte", "list_file": "my.txt", "remap": ["/old/disk", str(tmp_path)]}
    samples = list_samples([item], tmp_path)
    found = [(Path(s.image).stem, Path(s.alpha).stem) for s in samples]
    assert found == [
        ("rim_train_00000002", "rim_train_00000002_1"),
        ("rim_train_00000000", "rim_train_00000000_0"),
        ("rim_train_00000001", "rim_train_00000001_0"),
    ]
    with pytest.raises(DataError, match="none.txt"):
        list_samples([{"name": "RefMatte", "list_file": "none.txt"}], tmp_path)
    # As saved by an editor on Windows, and given by its own path.
    text = "\ufeffrim_train_00000001_1.png\r\n"
    (tmp_path / "its.txt").write_bytes(text.encode())
    (sample,) = list_samples({"name": "RefMatte", "list_file": f"{tmp_path}/its.txt"}, tmp_path)
    assert Path(sample.alpha).name == "rim_train_00000001_1.png"


def test_missing_masks_of_a_list_file(tmp_path, caplog):
    base = "RefMatte/RefMatte/train"
    touch(tmp_path, f"{base}/img/rim_train_1.jpg", f"{base}/mask/rim_train_1_0.png")
    item = {"name": "RefMatte", "list_file": "my.txt"}
    (tmp_path / "my.txt").write_text("rim_train_1_0.png\nrim_train_1_7.png\n/old/rim_train_1_8.png")
    assert len(list_samples(item, tmp_path)) == 3  # two are counted when they are loaded
    assert "2 files are missing" in caplog.text and "/old/rim_train_1_8.png" in caplog.text
    (tmp_path / "my.txt").write_text("/old/rim_train_1_0.png\n")
    with pytest.raises(DataError, match="1 file is missing.* /old/rim_train_1_0.png"):
        list_samples(item, tmp_path)


def test_transparency_of_refmatte_depends_on_its_alphas(tmp_path):
    base = "RefMatte/RefMatte/train"
    touch(tmp_path, f"{base}/img/rim_train_00000001.jpg")
    touch(tmp_path, *(f"{base}/mask/rim_train_00000001_{k}.png" for k in range(2)))
    assert [s.is_trans for s in list_samples("RefMatte", tmp_path)] == [None, None]
    path = tmp_path / "txt/RefMatte_transparent_samples.txt"
    path.parent.mkdir()
    path.write_text("rim_train_00000001_1.png\n")
    assert [s.is_trans for s in list_samples("RefMatte", tmp_path)] == [0, 1]


def test_number_of_masks_drawn(tmp_path):
    base = "RefMatte/RefMatte/train"
    touch(tmp_path, *(f"{base}/img/rim_train_{i}.jpg" for i in range(9)))
    touch(tmp_path, *(f"{base}/mask/rim_train_{i}_0.png" for i in range(9)))
    # The draw must not change: published numbers depend on it.
    for count, expected in ((4, (2, 4, 5, 7)), (20, range(9)), (None, range(9))):
        samples = list_samples({"name": "RefMatte", "count": count}, tmp_path)
        assert [s.alpha for s in samples] == [f"{base}/mask/rim_train_{i}_0.png" for i in expected]


@pytest.mark.parametrize("by", ["command line", "config file"])
def test_sets_pairs_and_their_settings_in_a_config(tmp_path, by):
    base = "RefMatte/RefMatte/train"
    touch(tmp_path, f"{base}/img/rim_train_1.jpg", f"{base}/mask/rim_train_1_0.png")
    (tmp_path / "my.txt").write_text(f"/old/{base}/mask/rim_train_1_0.png\n")
    write_pairs(tmp_path / "my own", ["1", "ä 2"])
    write_backgrounds(tmp_path)
    image, alpha = f"{tmp_path}/my own/image", f"{tmp_path}/my own/alpha"
    path, overrides = CONFIGS / "SDMatte_small.py", [f"dataloader.train.dataset.root={tmp_path}"]
    if by == "command line":
        overrides.append(
            f"dataloader.train.dataset.names=[{{image: '{image}', alpha: '{alpha}'}}, "
            f"{{image: {image}, alpha: {alpha}, name: mine, composites: 2}}, "
            f"{{name: RefMatte, list_file: my.txt, remap: [/old, {tmp_path}]}}]"
        )
    else:
        pair = {"image": image, "alpha": alpha}
        listed = {"name": "RefMatte", "list_file": "my.txt", "remap": ["/old", str(tmp_path)]}
        names = [pair, {**pair, "name": "mine", "composites": 2}, listed]
        own = f"{path.read_text()}\ndataloader.train.dataset.names = {names!r}\n"
        path = tmp_path / "own.py"
        path.write_text(own, encoding="utf-8")
        (tmp_path / "common").symlink_to(CONFIGS / "common")
    samples = build(load_config(path, overrides).dataloader.train.dataset).samples
    assert Counter(s.dataset for s in samples) == {"pair": 2, "mine": 4, "RefMatte": 1}
    assert [Path(s.alpha).name for s in samples[:2]] == ["1.png", "ä 2.png"]
    assert samples[-1].alpha == f"{tmp_path}/{base}/mask/rim_train_1_0.png"


def test_refmatte_rw100(tmp_path):
    folder = tmp_path / "RefMatte_RW_100"
    touch(folder, "image/p1.jpg", "mask/p1_0.png", "mask/p1_1.png")
    labels = {
        "p1_0": {"image_name": "p1.jpg", "expressions": ["a man", "the man on the left"]},
        "p1_1": {"image_name": "p1", "expressions": []},
    }
    (folder / "refmatte_rw100_label.json").write_text(json.dumps(labels))
    for name in ("RefMatte-RW-100", "RefMatte_RW_100"):
        first, second = list_samples(name, tmp_path, training=False)
        assert first.image == second.image == "RefMatte_RW_100/image/p1.jpg"
        assert first.dataset == "RefMatte-RW-100"
        assert (first.caption, second.caption) == ("the man on the left", "")
    labels["p1_1"]["expressions"] = "the other man"  # a string is one caption
    (folder / "refmatte_rw100_label.json").write_text(json.dumps(labels))
    captions = [s.caption for s in list_samples("RefMatte-RW-100", tmp_path, training=False)]
    assert captions == ["the man on the left", "the other man"]
    for broken in ({"p1_0": labels["p1_0"]}, labels | {"p1_1": {"image_name": 5}}):
        (folder / "refmatte_rw100_label.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=r"no image_name for .*p1_1\.png"):
            list_samples("RefMatte-RW-100", tmp_path, training=False)


@pytest.mark.parametrize("prefix", ["", "COCO_Matting/"])
def test_coco_matting(tmp_path, prefix):
    folder = "COCO_Matting"
    touch(tmp_path / folder, "img/1.jpg", "alpha/1.png", "trimap/1.png")
    rows = [{"image_path": f"{prefix}img/1.jpg", "alpha_path": f"{prefix}alpha/1.png"}]
    lost = {"image_path": f"{prefix}img/1.jpg", "alpha_path": f"{prefix}alpha/0.png"}
    (tmp_path / folder / "COCO_Matte.json").write_text(json.dumps([lost, *rows]))
    assert [s.alpha for s in list_samples("COCO-Matting", tmp_path)] == [
        f"{folder}/alpha/0.png",
        f"{folder}/alpha/1.png",
    ]
    (tmp_path / folder / "COCO_Matte.json").write_text(json.dumps(rows))
    (sample,) = list_samples("COCO-Matting", tmp_path)
    assert list_samples("COCO_Matting", tmp_path) == [sample]
    assert (sample.image, sample.alpha, sample.trimap) == (
        f"{folder}/img/1.jpg",
        f"{folder}/alpha/1.png",
        f"{folder}/trimap/1.png",
    )
    broken = '[{"image_path": 1, "alpha_path": 2}]'
    for text, reason in (
        ("[1]", "image_path"),
        (broken, "image_path"),
        ("{", "not valid JSON"),
        ("[]", "is empty"),
    ):
        (tmp_path / folder / "COCO_Matte.json").write_text(text)
        with pytest.raises(DataError, match=reason):
            list_samples("COCO-Matting", tmp_path)


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("names", "training", "reason"),
    [
        ("Composition-2K", True, "Unknown training set 'Composition-2K'; known are Composition-1K"),
        ("AIM-500", True, "AIM-500 is not a training set"),
        ("RefMatte", False, "known are AIM-500, AM-2K, P3M-500-NP"),
        ([], True, "No data set given; known are Composition-1K"),
        (3, True, "a list of names and folder pairs; got 3"),
        ([["AM-2K"]], True, "A data set must be a name or .*; got \\['AM-2K'\\]"),
        (
            [{"name": "AM-2K", "composites": True}],
            True,
            "AM-2K.composites must be an integer; got True",
        ),
        ([{"name": "AM-2K", "background": 5}], True, "AM-2K.background must be a string; got 5"),
        ([{"name": "RefMatte", "list_file": 5}], True, "RefMatte.list_file must be a string"),
        ([{"image": ["x"], "alpha": "y"}], True, "pair.image must be a string"),
        ([{"image": "x", "alpha": None}], True, "needs both folders"),
        ([{"image": "x", "alpha": "y", 1: 2}], True, "Unknown setting pair.1"),
        (
            [{"image": "x", "alpha": "y", "trimap": "z", "composites": 2}],
            True,
            "pair does not use trimap",
        ),
        ([{"image": "x", "alpha": "y", "background": "z"}], True, "pair does not use background"),
        ([{"nam": "AIM-500"}], True, "Unknown training set ''"),
        (
            [{"name": "AM-2K", "composite": 4}],
            True,
            "Unknown setting AM-2K.composite; did you mean composites",
        ),
        ([3], True, "A data set must be a name or {image: DIR, alpha: DIR}; got 3"),
        ([{"name": "AM-2K", "composites": "4"}], True, "AM-2K.composites must be an integer"),
        ([{"name": "AM-2K", "composites": -1}], True, "AM-2K.composites must be at least 0"),
        ([{"name": "P3M-10K", "composites": 2}], True, "P3M-10K does not use composites"),
        ([{"name": "DIS-646", "composites": 0}], True, "DIS-646 has foregrounds only"),
        (
            [{"name": "DIS-646", "is_trans": 2}],
            True,
            "is_trans must be at most 1; got 2",
        ),
        ([{"name": "RefMatte", "count": 1.5}], True, "count must be an integer; got 1.5"),
        ([{"name": "RefMatte", "remap": "/a:/b"}], True, "remap must be a list"),
        ([{"name": "COCO-Matting", "count": 5}], True, "COCO-Matting does not use count"),
        ([{"name": "UHRSD", "list_file": "x"}], True, "UHRSD does not use list_file"),
        (
            [{"image": "x", "alpha": "y", "is_trans": "no"}],
            True,
            "pair.is_trans must be an integer",
        ),
        ([{"image": "x"}], True, "needs both folders"),
        (
            [{"image": "x", "alpha": "y", "name": "../../esc"}],
            False,
            "must not be a path.*; got '../../esc'",
        ),
        ([{"image": "x", "alpha": "y", "name": ".."}], True, "also the name of a folder; got '..'"),
        ([{"image": "x", "alpha": "y", "name": "a/b"}], True, "got 'a/b'"),
        (
            [{"image": "x", "alpha": "y", "alhpa": "z"}],
            True,
            "Unknown setting pair.alhpa; did you mean alpha",
        ),
        ([{"image": "x", "alpha": "y"}], True, "/x not found"),
        ("Composition-1K", True, "combined_fg not found"),
        ("COCO-Matting", True, r"COCO_Matte\.json: No such file"),
    ],
)
def test_mistakes(tmp_path, names, training, reason):
    with pytest.raises((ConfigError, DataError), match=reason) as caught:
        list_samples(names, tmp_path, training)
    assert "\n" not in str(caught.value)


def test_a_missing_data_root(tmp_path):
    with pytest.raises(DataError, match="nowhere not found.*SDMATTE_DATA_ROOT"):
        list_samples("Composition-1K", tmp_path / "nowhere")


def test_every_known_name_is_listed(tmp_path):
    for training, table in ((True, TRAIN_SETS), (False, TEST_SETS)):
        with pytest.raises(DataError) as caught:
            list_samples("?", tmp_path, training)
        assert all(name in str(caught.value) for name in table)


def test_empty_set_and_no_backgrounds(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "alpha").mkdir()
    with pytest.raises(DataError, match=r"pair is empty: no image in .*alpha"):
        list_samples(PAIR, tmp_path)
    write_composition(tmp_path, backgrounds=0)
    with pytest.raises(DataError, match=r"need backgrounds.*BG-20K"):
        list_samples("Composition-1K", tmp_path)


def test_missing_partners(tmp_path, caplog):
    write_aim(tmp_path)
    pair = {"image": "AIM-500/original", "alpha": "AIM-500/mask"}
    (tmp_path / "AIM-500/original/o_2.jpg").unlink()
    (tmp_path / "AIM-500/trimap/o_3.png").unlink()
    with pytest.raises(DataError, match=r"2 files are missing.*o_2\.jpg.*trimap/o_3\.png\.$"):
        list_samples("AIM-500", tmp_path, training=False)
    assert len(list_samples(pair, tmp_path)) == 3  # counted when it is loaded
    assert "o_2.jpg" in caplog.text
    for path in (tmp_path / "AIM-500/original").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="3 files are missing"):
        list_samples(pair, tmp_path)


def test_a_missing_label_file(tmp_path):
    touch(tmp_path, "COCO_Matting/alpha/a.png")
    with pytest.raises(MissingFileError, match="COCO_Matte.json: No such file"):
        list_samples("COCO-Matting", tmp_path)
