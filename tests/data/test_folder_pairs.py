"""Folder pairs: names, formats, links, permissions, and held-out parts."""

import os
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from data_trees import PAIR, touch, write_aim, write_backgrounds, write_composition, write_pairs

from SDMatte.data import MattingDataset
from SDMatte.data.catalog import list_samples
from SDMatte.data.check import check_set, list_set
from SDMatte.errors import ConfigError, DataError
from SDMatte.images.formats import IMAGE_EXTENSIONS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


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
        (3, "holdout=3 holds out all 3 images"),
        (4, "holdout=4 holds out all 3 images"),
        (0.999999, "holdout=0.999999 holds out all 3 images"),
        (0.000001, "holdout=1e-06 holds out none of 3 images; use a larger fraction, or a"),
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
    with pytest.raises(ConfigError, match="Unknown setting AM-2K.holdout"):
        list_samples({"name": "AM-2K", "holdout": 0.1}, tmp_path)
