"""Layouts of the sets, as trees on disk, and folder pairs: data/README.md, tables."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from data_trees import write_aim, write_backgrounds, write_composition, write_pairs

from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS, Sample, data_root, list_samples
from SDMatte.errors import DataError
from SDMatte.image_io import IMAGE_EXTENSIONS


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_data_root(monkeypatch):
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
    assert samples[0].kind == "composite"


def test_aim(tmp_path):
    write_aim(tmp_path)
    samples = list_samples(["AIM-500"], tmp_path, training=False)
    assert samples[1] == Sample(
        "AIM-500", "AIM-500/original/o_2.jpg", "AIM-500/mask/o_2.png", "AIM-500/trimap/o_2.png"
    )
    assert len(samples) == 3 and samples[1].kind == "natural"


def test_published_schedule_has_24401_samples(tmp_path):
    """Trees of the real sizes (data/README.md); the files are empty, only their names count."""

    def fill(folder, stems, **parts):
        for part, suffix in parts.items():
            (tmp_path / folder / part).mkdir(parents=True)
            for stem in stems:
                os.close(os.open(tmp_path / folder / part / (stem + suffix), os.O_CREAT))

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
    touch(tmp_path, "BG-20K/train/a.jpg", "BG-20K/testval/b.jpg")
    names = ["Composition-1K", "DIS-646", "AM-2K", "RefMatte", "UHRSD"]
    samples = list_samples(names, tmp_path)
    assert Counter(s.dataset for s in samples) == {
        "Composition-1K": 431 * 3,
        "DIS-646": 596 * 3,
        "AM-2K": 1800 + 1800 * 2,
        "RefMatte": 10_000,
        "UHRSD": 4932 + 988,
    }
    assert len(samples) == 24_401
    refmatte = [s for s in samples if s.dataset == "RefMatte"]
    assert all(Path(s.image).stem == Path(s.alpha).stem.rpartition("_")[0] for s in refmatte)
    assert len({s.alpha for s in refmatte}) == 10_000
    assert refmatte == list_samples("RefMatte", tmp_path)  # drawn once and for all
    released = list_samples([{"name": "AM-2K", "composites": 4}, *names[:2], *names[3:]], tmp_path)
    assert len(released) == 28_001


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
    touch(tmp_path, "txt/Trans-460_transparent_samples.txt")  # nothing on the list: no matter
    samples = list_samples("Trans-460", tmp_path)
    assert [s.kind for s in samples] == ["natural"] + ["composite"] * 5
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
    del labels["p1_1"]
    (folder / "refmatte_rw100_label.json").write_text(json.dumps(labels))
    with pytest.raises(DataError, match=r"no image_name for .*p1_1\.png"):
        list_samples("RefMatte-RW-100", tmp_path, training=False)


@pytest.mark.parametrize("prefix", ["", "COCO_Matting/"])
def test_coco_matting(tmp_path, prefix):
    folder = "COCO_Matting"
    touch(tmp_path / folder, "img/1.jpg", "alpha/1.png", "trimap/1.png")
    rows = [{"image_path": f"{prefix}img/1.jpg", "alpha_path": f"{prefix}alpha/1.png"}]
    (tmp_path / folder / "COCO_Matte.json").write_text(json.dumps(rows))
    (sample,) = list_samples("COCO-Matting", tmp_path)
    assert (sample.image, sample.alpha, sample.trimap) == (
        f"{folder}/img/1.jpg",
        f"{folder}/alpha/1.png",
        f"{folder}/trimap/1.png",
    )
    for text, reason in (("[1]", "image_path"), ("{", "not valid JSON"), ("[]", "is empty")):
        (tmp_path / folder / "COCO_Matte.json").write_text(text)
        with pytest.raises(DataError, match=reason):
            list_samples("COCO-Matting", tmp_path)


# ---------------------------------------------------------------- folder pairs


def test_folder_pair(tmp_path, monkeypatch):
    write_pairs(tmp_path / "my data", ["1", "2"], "photos", "mattes")
    pair = {"image": f"{tmp_path}/my data/photos", "alpha": f"{tmp_path}/my data/mattes"}
    samples = list_samples(pair, tmp_path / "elsewhere")
    assert [Path(s.image).name for s in samples] == ["1.jpg", "2.jpg"]
    assert {s.dataset for s in samples} == {"pair"} and samples[0].is_trans is None
    assert Path(samples[0].alpha).is_file()

    relative = {"image": "my data/photos", "alpha": "my data/mattes", "name": "mine"}
    by_root = list_samples([relative], tmp_path, training=False)
    assert (by_root[0].image, by_root[0].dataset) == ("my data/photos/1.jpg", "mine")
    monkeypatch.chdir(tmp_path)
    by_folder = list_samples([{**relative, "is_trans": 1}], "elsewhere", training=False)
    assert Path(by_folder[0].image).is_file() and by_folder[0].is_trans == 1


def test_folder_pair_with_trimap_and_with_composites(tmp_path):
    write_pairs(tmp_path, ["1"], "image", "alpha")
    touch(tmp_path, "trimap/1.png")
    write_backgrounds(tmp_path, 2, "back")
    pair = {"image": "image", "alpha": "alpha"}
    (sample,) = list_samples({**pair, "trimap": "trimap"}, tmp_path)
    assert sample.trimap == "trimap/1.png"
    samples = list_samples({**pair, "composites": 3, "background": "back"}, tmp_path)
    assert [s.background for s in samples] == ["back/b00.jpg", "back/b01.jpg", "back/b00.jpg"]
    assert {s.image for s in samples} == {"image/1.jpg"}


def test_mix(tmp_path):
    write_composition(tmp_path)
    write_pairs(tmp_path / "own", ["1"])
    names = ["Composition-1K", {"image": "own/image", "alpha": "own/alpha", "name": "own"}]
    assert Counter(s.dataset for s in list_samples(names, tmp_path)) == {
        "Composition-1K": 9,
        "own": 1,
    }


@pytest.mark.parametrize("suffix", [s for s in IMAGE_EXTENSIONS if s != ".jpg"] + [".JPG", ".Png"])
def test_any_extension_of_the_image(tmp_path, suffix):
    touch(tmp_path, f"image/a{suffix}", "alpha/a.tif")
    (sample,) = list_samples({"image": "image", "alpha": "alpha"}, tmp_path)
    assert (sample.image, sample.alpha) == (f"image/a{suffix}", "alpha/a.tif")


def test_symlinked_folders(tmp_path):
    write_composition(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "mixed").mkdir()
    for name in ("Combined_Dataset", "BG-20K"):
        (tmp_path / "mixed" / name).symlink_to(tmp_path / "real" / name)
    expected = list_samples("Composition-1K", tmp_path / "real")
    assert list_samples("Composition-1K", tmp_path / "link") == expected
    assert list_samples("Composition-1K", tmp_path / "mixed") == expected


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("names", "training", "reason"),
    [
        ("Composition-2K", True, "Unknown training set 'Composition-2K'; known are Composition-1K"),
        ("AIM-500", True, "AIM-500 is no training set"),
        ("RefMatte", False, "known are AIM-500, AM-2K, P3M-500-NP"),
        ([], True, "No data set is named"),
        ([{"nam": "AIM-500"}], True, "Unknown training set ''"),
        ([{"name": "AM-2K", "composite": 4}], True, "AM-2K: unknown composite; known are"),
        ([{"image": "x"}], True, "needs both folders"),
        ([{"image": "x", "alpha": "y", "alhpa": "z"}], True, "unknown alhpa"),
        ([{"image": "x", "alpha": "y"}], True, "/x does not exist"),
        ("Composition-1K", True, "combined_fg does not exist"),
        ("COCO-Matting", True, r"COCO_Matte\.json: No such file"),
    ],
)
def test_mistakes_get_a_sentence(tmp_path, names, training, reason):
    with pytest.raises(DataError, match=reason) as caught:
        list_samples(names, tmp_path, training)
    assert "\n" not in str(caught.value)


def test_missing_data_root_says_how_to_set_it(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist.*SDMATTE_DATA_ROOT"):
        list_samples("Composition-1K", tmp_path / "nowhere")


def test_every_known_name_is_listed(tmp_path):
    for training, table in ((True, TRAIN_SETS), (False, TEST_SETS)):
        with pytest.raises(DataError) as caught:
            list_samples("?", tmp_path, training)
        assert all(name in str(caught.value) for name in table)


def test_empty_set_and_no_backgrounds(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "alpha").mkdir()
    with pytest.raises(DataError, match=r"pair is empty: no picture in .*alpha"):
        list_samples({"image": "image", "alpha": "alpha"}, tmp_path)
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
    assert len(list_samples(pair, tmp_path)) == 3  # met, and counted, when it is loaded
    assert "o_2.jpg" in caplog.text
    for path in (tmp_path / "AIM-500/original").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="3 files are missing"):
        list_samples(pair, tmp_path)
