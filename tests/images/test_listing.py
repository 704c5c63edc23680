"""Listing folders of images, and pairing images by name."""

import unicodedata

import pytest

from SDMatte.errors import DataError
from SDMatte.images.listing import find_partner, list_names, names_by_stem, scan_folder

NFC = unicodedata.normalize("NFC", "café")
NFD = unicodedata.normalize("NFD", "café")


@pytest.fixture
def keeps_spellings(tmp_path):
    """Skip if the file system normalizes names."""
    (tmp_path / NFC).touch()
    if (tmp_path / NFD).exists():
        pytest.skip("this file system normalizes names")
    (tmp_path / NFC).unlink()


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


# --------------------------------------------------------------------- folders


def test_list_names_is_sorted_and_skips_hidden_files(tmp_path):
    touch(tmp_path, "b.png", "a.JPG", ".hidden.png", "._a.jpg", "notes.txt", "c c.webp", "d.png/x")
    assert list_names(tmp_path) == ["a.JPG", "b.png", "c c.webp"]
    with pytest.raises(DataError, match="nowhere not found"):
        list_names(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Cannot list"):
        list_names(tmp_path / "b.png")


@pytest.fixture
def tree(tmp_path):
    names = ["a.png", "notes.txt", "b.psd", "day1/c.jpg", "day1/raw/d.png", "day1/x.txt"]
    hidden = [".DS_Store", "Thumbs.db", "desktop.ini", ".git/e.png", "empty/readme.md"]
    return touch(tmp_path / "in", *names, *hidden)


def test_files_left_out_are_counted_and_named(tree, caplog):
    scan = scan_folder(tree)
    assert scan.images == ("a.png",) and scan.others == ("b.psd", "notes.txt")
    assert scan.sub_folders == {"day1": 2} and scan.num_left_out == 4
    scan.log_left_out("Use --recursive.")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tree}: 2 files left out, not images: b.psd, notes.txt.",
        f"{tree}: 2 images in 1 sub-folder left out: day1 (2). Use --recursive.",
    ]
    touch(tree, *(f"{number}.txt" for number in range(9)))
    scan_folder(tree).log_left_out()
    names = "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 6 more"
    assert f"11 files left out, not images: {names}." in caplog.text


def test_scan_sub_folders(tree):
    scan = scan_folder(tree, recursive=True)
    assert scan.images == ("a.png", "day1/c.jpg", "day1/raw/d.png")
    assert scan.others == ("b.psd", "day1/x.txt", "empty/readme.md", "notes.txt")
    assert scan.sub_folders == {}
    for skip in ([tree / "day1"], [tree, tree / "day1"]):
        assert scan_folder(tree, recursive=True, skip=skip).images == ("a.png",)
    (tree / "folder.png").mkdir()
    assert "folder.png" not in scan_folder(tree).images


def test_linked_folders_count_once(tree):
    (tree / "day1" / "up").symlink_to(tree)
    (tree / "day1" / "self").symlink_to("self")
    (tree / "again").symlink_to(tree / "day1")  # sorts before day1
    (tree / "elsewhere").symlink_to(touch(tree.parent / "other", "e.png"))
    scan = scan_folder(tree, recursive=True)
    assert scan.images == ("a.png", "day1/c.jpg", "day1/raw/d.png", "elsewhere/e.png")
    assert scan_folder(tree).sub_folders == {"day1": 2, "elsewhere": 1}


# ----------------------------------------------------------------------- names


def test_names_by_stem(tmp_path, caplog):
    touch(tmp_path, "a.png", "a.jpg", "b.tif", "b.webp", "c.d.png")
    assert names_by_stem(tmp_path) == {"a": "a.png", "b": "b.webp", "c.d": "c.d.png"}
    assert names_by_stem(tmp_path, ".jpg")["a"] == "a.jpg"
    shadowed = "a.jpg (beside a.png), b.tif (beside b.webp)"
    assert f"2 images left out, same name as another: {shadowed}" in caplog.text


def test_find_partner(tmp_path):
    touch(tmp_path, "a.jpg", "b.pNG", "c.d.webp")
    assert find_partner("x/a.png", tmp_path).name == "a.jpg"
    assert find_partner("x/b.png", tmp_path).name == "b.pNG"
    assert find_partner("x/c.d.png", tmp_path).name == "c.d.webp"
    with pytest.raises(DataError, match="e.png has no partner: .* has no e with any") as caught:
        find_partner("x/e.png", tmp_path)
    assert str(tmp_path) in str(caught.value)
    touch(tmp_path, "a.tif")
    with pytest.raises(DataError, match="several partners in .*: a.jpg, a.tif. Keep one"):
        find_partner("x/a.webp", tmp_path)


def test_names_in_another_unicode_spelling(tmp_path, keeps_spellings):
    touch(tmp_path, f"{NFD}.Png")
    assert find_partner(f"x/{NFC}.jpg", tmp_path) == tmp_path / f"{NFD}.Png"
    assert names_by_stem(tmp_path) == {NFC: f"{NFD}.Png"}
    touch(tmp_path, f"{NFC}.png")
    for spelling in (NFC, NFD):  # an exact match wins
        assert find_partner(f"{spelling}.jpg", tmp_path).stem == spelling
    with pytest.raises(DataError, match=r"two Unicode spellings, 'cafe\\u0301.Png' and 'caf\\xe9"):
        names_by_stem(tmp_path)
