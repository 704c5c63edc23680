"""Layouts of the known sets and folder pairs as trees on disk; missing files and mistakes."""

import json
import os
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_trees import PAIR, touch, write_aim, write_backgrounds, write_composition, write_pairs

from SDMatte.data import MattingDataset
from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS, data_root, list_samples
from SDMatte.data.check import check_set, list_set
from SDMatte.data.listing import Sample
from SDMatte.errors import ConfigError, DataError, MissingFileError
from SDMatte.images.formats import IMAGE_EXTENSIONS
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
    (sample,) = list_samples({**PAIR, "trimap": "trimap"}, tmp_path)
    assert sample.trimap == "trimap/1.png"
    samples = list_samples({**PAIR, "composites": 3, "background": "back"}, tmp_path)
    assert [s.background for s in samples] == ["back/b00.jpg", "back/b01.jpg", "back/b00.jpg"]
    assert {s.image for s in samples} == {"image/1.jpg"}


def test_several_sets(tmp_path):
    write_composition(tmp_path)
    write_pairs(tmp_path / "own", ["1"])
    names = ["Composition-1K", {"image": "own/image", "alpha": "own/alpha", "name": "own"}]
    assert Counter(s.dataset for s in list_samples(names, tmp_path)) == {
        "Composition-1K": 9,
        "own": 1,
    }


@pytest.mark.parametrize("suffix", [s for s in IMAGE_EXTENSIONS if s != ".jpg"] + [".JPG", ".Png"])
def test_any_image_extension(tmp_path, suffix):
    touch(tmp_path, f"image/a{suffix}", "alpha/a.tif")
    (sample,) = list_samples(PAIR, tmp_path)
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


def test_links_to_files_and_circular_links(tmp_path):
    write_composition(tmp_path / "real")
    for path in sorted((tmp_path / "real").rglob("*")):
        link = tmp_path / "links" / path.relative_to(tmp_path / "real")
        link.mkdir(parents=True) if path.is_dir() else link.symlink_to(path)
    expected = list_samples("Composition-1K", tmp_path / "real")
    (tmp_path / "links/BG-20K/again").symlink_to(tmp_path / "links/BG-20K")
    assert list_samples("Composition-1K", tmp_path / "links") == expected
    dataset = MattingDataset("Composition-1K", root=tmp_path / "links", size=8)
    assert [dataset[i]["image_name"] for i in (0, 3, 6)] == ["x.png", "y.png", "z.png"]


def test_names_are_matched_in_any_unicode_normalization(tmp_path):
    nfc, nfd = "caf\xe9", "cafe\u0301"
    touch(tmp_path, f"image/{nfd}.JPG", f"alpha/{nfc}.Png", f"trimap/{nfd}.png")
    folders = {key: str(tmp_path / key) for key in ("image", "alpha", "trimap")}
    (sample,) = list_samples(folders, tmp_path)
    found = [getattr(sample, key) for key in folders]
    assert found == [f"image/{nfd}.JPG", f"alpha/{nfc}.Png", f"trimap/{nfd}.png"]
    base = "RefMatte/RefMatte/train"
    touch(tmp_path, f"{base}/img/{nfd}.jpg", f"{base}/mask/{nfd}_0.png")
    (tmp_path / "list.txt").write_text(f"{nfc}_0.PNG\n", encoding="utf-8")
    (sample,) = list_samples({"name": "RefMatte", "list_file": "list.txt"}, tmp_path)
    assert (sample.image, sample.alpha) == (f"{base}/img/{nfd}.jpg", f"{base}/mask/{nfd}_0.png")


def test_files_left_out_are_logged(tmp_path, caplog):
    names = [
        "a/x.jpg",
        "a/x.txt",
        "a/Thumbs.db",
        "a/alpha/x.png",
        "a/alpha/more/y.png",
        "a/z/z.jpg",
    ]
    touch(tmp_path, *names, "b/1.jpg", "b/deep/2.jpg", "b/deep/3.doc")
    pair = {"image": str(tmp_path / "a"), "alpha": str(tmp_path / "a/alpha")}
    background = {"composites": 1, "background": str(tmp_path / "b")}
    samples = list_samples({**pair, **background}, tmp_path)
    assert len(samples) == 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path / 'a'}: 1 file left out, not images: x.txt.",
        f"{tmp_path / 'a'}: 1 image in 1 sub-folder left out: z (1).",
        f"{tmp_path / 'a/alpha'}: 1 image in 1 sub-folder left out: more (1).",
        f"{tmp_path / 'b'}: 1 file left out, not images: deep/3.doc.",
    ]


def test_a_dangling_link_is_named(tmp_path):
    write_pairs(tmp_path, ["1", "2"])
    (tmp_path / "image/2.jpg").unlink()
    (tmp_path / "image/2.jpg").symlink_to(tmp_path / "gone.jpg")
    dataset = MattingDataset(PAIR, root=tmp_path, size=8, training=False)
    assert dataset[0]["image_name"] == "1.png"
    with pytest.raises(DataError, match=r"image/2\.jpg: the file does not exist"):
        dataset[1]


@pytest.fixture
def other_user():
    """Drop root's rights, which no permission denies."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("forbidden", ["AIM-500/mask", "AIM-500", "."])
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_folders_without_permission(forbidden, mode, other_user):
    with tempfile.TemporaryDirectory() as name:  # pytest's folder is private
        root = write_aim(Path(name) / "root")
        pair = {"image": f"{root}/AIM-500/original", "alpha": f"{root}/AIM-500/mask"}
        dataset = MattingDataset("AIM-500", root=root, size=16, training=False)
        (root / forbidden).chmod(mode)
        try:
            with pytest.raises(DataError, match="permission denied"):
                dataset[0]
            listed = list_set("AIM-500", root, training=False)
            if mode == 0o444 and forbidden == "AIM-500/mask":  # names can be listed
                texts = [finding.text for finding in check_set(listed, 1).findings]
                assert len(texts) == 3 and all("permission denied" in text for text in texts)
                return
            assert "Permission denied" in listed.problem
            for names in ("AIM-500", pair):
                with pytest.raises(DataError, match="Permission denied"):
                    list_samples(names, root, training=False)
        finally:
            (root / forbidden).chmod(0o755)


def test_nothing_is_written_to_the_data_root(tmp_path):
    """It may be read-only."""
    write_composition(tmp_path)
    for path in [*tmp_path.rglob("*"), tmp_path]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def state():
        return {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}

    try:
        before = state()
        dataset = MattingDataset("Composition-1K", root=tmp_path, size=8, max_bad_samples=0)
        assert len([dataset[i] for i in range(len(dataset))]) == 9
        assert state() == before
    finally:  # for pytest to delete it
        for path in [tmp_path, *tmp_path.rglob("*")]:
            path.chmod(0o755)


def test_images_without_an_alpha_are_logged(tmp_path, caplog):
    write_pairs(tmp_path, ["1", "2"])
    list_samples(PAIR, tmp_path)
    assert "no alpha" not in caplog.text
    touch(tmp_path, "image/0.jpg", "image/9.png")
    assert [Path(s.image).name for s in list_samples(PAIR, tmp_path)] == ["1.jpg", "2.jpg"]
    assert "2 images have no alpha and are left out: image/0.jpg" in caplog.text


# -------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("names", "training", "reason"),
    [
        ("Composition-2K", True, "Unknown training set 'Composition-2K'; known are Composition-1K"),
        ("AIM-500", True, "AIM-500 is not a training set"),
        ("RefMatte", False, "known are AIM-500, AM-2K, P3M-500-NP"),
        ([], True, "No data set is named; known are Composition-1K"),
        (3, True, "a list of names and folder pairs; got 3"),
        ([["AM-2K"]], True, "A data set is a name or {image: DIR, alpha: DIR}; got \\['AM-2K'\\]"),
        (
            [{"name": "AM-2K", "composites": True}],
            True,
            "AM-2K.composites must be an integer; got True",
        ),
        ([{"name": "AM-2K", "background": 5}], True, "AM-2K.background must be a string; got 5"),
        ([{"name": "RefMatte", "list_file": 5}], True, "RefMatte.list_file must be a string"),
        ([{"image": ["x"], "alpha": "y"}], True, "pair.image must be a string"),
        ([{"image": "x", "alpha": None}], True, "needs both folders"),
        ([{"image": "x", "alpha": "y", 1: 2}], True, "no setting pair.1"),
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
            "no setting AM-2K.composite; did you mean composites",
        ),
        ([3], True, "A data set is a name or {image: DIR, alpha: DIR}; got 3"),
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
        ([{"image": "x", "alpha": "y", "name": ".."}], True, "also names folders; got '..'"),
        ([{"image": "x", "alpha": "y", "name": "a/b"}], True, "got 'a/b'"),
        (
            [{"image": "x", "alpha": "y", "alhpa": "z"}],
            True,
            "no setting pair.alhpa; did you mean alpha",
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


# ----------------------------------------------------------------------- holdout


def held_out(root, holdout, training=False):
    pair = {"image": f"{root}/image", "alpha": f"{root}/alpha", "holdout": holdout}
    return {Path(s.alpha).stem for s in list_samples(pair, root, training)}


def test_a_part_is_held_out_by_name(tmp_path):
    names = [f"n{i:02d}" for i in range(40)]
    touch(tmp_path, *(f"image/{n}.jpg" for n in names), *(f"alpha/{n}.png" for n in names))
    quarter, seven = held_out(tmp_path, 0.25), held_out(tmp_path, 7)
    assert 3 < len(quarter) < 20 and len(seven) == 7
    assert seven <= quarter or quarter <= seven  # both follow the same order
    assert held_out(tmp_path, 0.25, training=True) == set(names) - quarter
    assert held_out(tmp_path, 7, training=True) == set(names) - seven
    # Files that are added later do not move the others.
    touch(tmp_path, *(f"{d}/later{i}.png" for d in ("image", "alpha") for i in range(20)))
    assert held_out(tmp_path, 0.25) & set(names) == quarter
    # The same on other machines and in later versions.
    assert sorted(seven) == ["n07", "n08", "n23", "n25", "n26", "n34", "n36"]


def test_unicode_normalization_does_not_move_a_pair(tmp_path):
    stems = [f"caf\u00e9{i}" for i in range(12)]
    parts = []
    for form in ("NFC", "NFD"):
        root = tmp_path / form
        written = [unicodedata.normalize(form, stem) for stem in stems]
        touch(root, *(f"image/{n}.jpg" for n in written), *(f"alpha/{n}.png" for n in written))
        parts.append({unicodedata.normalize("NFC", stem) for stem in held_out(root, 5)})
    assert parts[0] == parts[1] and len(parts[0]) == 5


@pytest.mark.parametrize(
    ("holdout", "sentence"),
    [
        *(
            (value, "pair.holdout must be a fraction between 0 and 1 or a number")
            for value in (0, 1.0)
        ),
        *(
            (value, "must be a fraction between 0 and 1 or a number")
            for value in (-1, -0.1, True, "x")
        ),
        (3, "holdout: 3 of 3 images holds out all"),
        (4, "holdout: 4 of 3 images holds out all"),
        (0.999999, "holdout: 0.999999 of 3 images holds out all"),
        (0.000001, "holdout: 1e-06 of 3 images holds out none; use a larger fraction, or a"),
    ],
)
def test_invalid_holdouts(holdout, sentence, tmp_path):
    touch(tmp_path, *(f"{d}/{n}.png" for d in ("image", "alpha") for n in "abc"))
    for training in (True, False):
        with pytest.raises((ConfigError, DataError), match=sentence):
            held_out(tmp_path, holdout, training)


def test_composites_and_known_sets_have_no_holdout(tmp_path):
    pair = {"image": "a", "alpha": "b", "composites": 2, "holdout": 0.1}
    with pytest.raises(DataError, match="hold out a pair of images and alphas instead"):
        list_samples(pair, tmp_path)
    with pytest.raises(ConfigError, match="no setting AM-2K.holdout"):
        list_samples({"name": "AM-2K", "holdout": 0.1}, tmp_path)


def test_a_missing_label_file(tmp_path):
    touch(tmp_path, "COCO_Matting/alpha/a.png")
    with pytest.raises(MissingFileError, match="COCO_Matte.json: No such file"):
        list_samples("COCO-Matting", tmp_path)
