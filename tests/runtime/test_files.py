"""Names in any spelling, files written in one piece, and inputs that stay."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from SDMatte.errors import DataError, OutputError
from SDMatte.images.listing import find_partner, names_by_stem, scan_folder
from SDMatte.runtime.files import (
    NameLookup,
    check_not_read,
    clear_leftovers,
    name_key,
    replace_file,
    stem_key,
    write_text,
)

ROOT = Path(__file__).parents[1]
NFC = unicodedata.normalize("NFC", "café")
NFD = unicodedata.normalize("NFD", "café")


@pytest.fixture
def tell_apart(tmp_path):
    """Skips where the file system takes both spellings for one name."""
    (tmp_path / NFC).touch()
    if (tmp_path / NFD).exists():
        pytest.skip("this file system normalizes names")
    (tmp_path / NFC).unlink()


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


# ----------------------------------------------------------------------- names


def test_keys():
    assert name_key(f"{NFD}.JPG") == name_key(f"{NFC}.jpG") == f"{NFC}.jpg"
    assert name_key("A.b.Png") == "A.b.png" and name_key("A") != name_key("a")
    assert stem_key(Path("x", f"{NFD}.v2.Png")) == f"{NFC}.v2"
    strange = os.fsdecode(b"caf\xe9.JPG")  # not UTF-8
    assert name_key(strange) == strange[:-3] + "jpg"


def test_files_are_found_in_another_spelling(tmp_path, tell_apart):
    touch(tmp_path, f"{NFD}/{NFD}.JPG", "plain.Png")
    lookup = NameLookup()
    assert lookup.find(tmp_path / NFC / f"{NFC}.jpg") == tmp_path / NFD / f"{NFD}.JPG"
    assert lookup.find(tmp_path / "plain.PNG") == tmp_path / "plain.Png"
    for missing in ("none.png", "none/x.png", "a\0.png"):
        assert lookup.find(tmp_path / missing) == tmp_path / missing
    touch(tmp_path, "two.JPG", "two.jpg")
    assert NameLookup().find(tmp_path / "two.jpg") == tmp_path / "two.jpg"  # the exact one
    with pytest.raises(DataError, match="two.Jpg is ambiguous.*2 other spellings"):
        NameLookup().find(tmp_path / "two.Jpg")


def test_partners_in_another_spelling(tmp_path, tell_apart):
    touch(tmp_path, f"{NFD}.Png", "b.pNG")
    assert find_partner(f"x/{NFC}.jpg", tmp_path) == tmp_path / f"{NFD}.Png"
    assert find_partner("x/b.jpg", tmp_path) == tmp_path / "b.pNG"
    assert names_by_stem(tmp_path) == {NFC: f"{NFD}.Png", "b": "b.pNG"}
    touch(tmp_path, f"{NFC}.png")
    for spelling in (NFC, NFD):  # each its own
        assert find_partner(f"{spelling}.jpg", tmp_path).stem == spelling
    with pytest.raises(DataError, match=r"two Unicode spellings, 'cafe\\u0301.Png' and 'caf\\xe9"):
        names_by_stem(tmp_path)


def test_several_partners_are_refused_and_shadowed_names_are_logged(tmp_path, caplog):
    touch(tmp_path, "a.png", "a.jpg")
    with pytest.raises(DataError, match="several partners in .*: a.png, a.jpg. Keep one"):
        find_partner("x/a.webp", tmp_path)
    assert names_by_stem(tmp_path) == {"a": "a.png"}
    assert "1 image left out, another has the same name: a.jpg (beside a.png)" in caplog.text


# --------------------------------------------------------------------- folders


@pytest.fixture
def tree(tmp_path):
    names = ["a.png", "notes.txt", "b.psd", "day1/c.jpg", "day1/raw/d.png", "day1/x.txt"]
    hidden = [".DS_Store", "Thumbs.db", "desktop.ini", ".git/e.png", "empty/readme.md"]
    return touch(tmp_path / "in", *names, *hidden)


def test_what_is_left_out_is_counted_and_named(tree, caplog):
    scan = scan_folder(tree)
    assert scan.images == ("a.png",) and scan.others == ("b.psd", "notes.txt")
    assert scan.sub_folders == {"day1": 2} and scan.num_left_out == 4
    scan.log_left_out("Look there.")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tree}: 2 files left out, not images: b.psd, notes.txt.",
        f"{tree}: 2 images in 1 sub-folder left out: day1 (2). Look there.",
    ]
    touch(tree, *(f"{number}.txt" for number in range(9)))
    scan_folder(tree).log_left_out()
    assert "11 files left out, not images: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 6 more." in (
        caplog.text
    )


def test_sub_folders(tree):
    scan = scan_folder(tree, recursive=True)
    assert scan.images == ("a.png", "day1/c.jpg", "day1/raw/d.png")
    assert scan.others == ("b.psd", "day1/x.txt", "empty/readme.md", "notes.txt")
    assert scan.sub_folders == {}
    assert scan_folder(tree, recursive=True, skip=[tree / "day1"]).images == ("a.png",)
    (tree / "like.png").mkdir()  # a folder
    assert "like.png" not in scan_folder(tree).images


def test_loops_of_links_end_and_folders_count_once(tree):
    (tree / "day1" / "up").symlink_to(tree)
    (tree / "day1" / "self").symlink_to("self")
    (tree / "again").symlink_to(tree / "day1")  # sorts before it
    (tree / "elsewhere").symlink_to(touch(tree.parent / "other", "e.png"))
    scan = scan_folder(tree, recursive=True)
    assert scan.images == ("a.png", "day1/c.jpg", "day1/raw/d.png", "elsewhere/e.png")
    assert scan_folder(tree).sub_folders == {"day1": 2, "elsewhere": 1}


# --------------------------------------------------------------------- writing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    with pytest.raises(KeyError), replace_file(path) as temporary:
        temporary.write_text("tw")
        raise KeyError
    assert path.read_text() == "one" and os.listdir(path.parent) == ["a.txt"]
    longest = tmp_path / ("é" * 125 + ".text")  # 255 bytes
    write_text(longest, "fits")
    assert longest.read_text() == "fits"
    with pytest.raises(OutputError, match="Cannot write .*File name too long"):
        write_text(tmp_path / ("x" * 256), "too long")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write .*Not a directory"):
        write_text(tmp_path / "file" / "a.txt", "in the way")


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path):
    code = """
import os, signal, sys
from SDMatte.runtime.files import replace_file
with replace_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    target = tmp_path / "a.txt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(target)], env=environment)
    assert done.returncode == -9 and not target.exists()
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".a.txt.") and left.endswith(".tmp")

    old, young = (tmp_path / f".{name}.png.elsewhere-77.tmp" for name in "or")
    mine = [".draft.tmp", "a.999999999.tmp", ".x.12.tmp.bak", f".live.png.{os.getppid()}.tmp"]
    touch(tmp_path, *mine, old.name, young.name, ".old.png.999999999.tmp")
    os.utime(old, (0, 0))
    clear_leftovers.cache_clear()
    write_text(tmp_path / "b.txt", "next")
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, young.name, "b.txt"])


# ------------------------------------------------------- what a command reads


def test_inputs_are_no_outputs_by_any_name(tmp_path, monkeypatch):
    touch(tmp_path, "in/a.png", "out/b.png")
    source = tmp_path / "in" / "a.png"
    (tmp_path / "out" / "soft.png").symlink_to(source)
    (tmp_path / "out" / "hard.png").hardlink_to(source)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "out/../in/a.png", "out/soft.png", "out/hard.png", "link/a.png"):
        for pair in ([name], [source]), ([source], [name]):
            with pytest.raises(OutputError, match="must not be overwritten: choose another"):
                check_not_read(*pair)
    with pytest.raises(OutputError, match="link is in, which is read"):
        check_not_read(["link"], ["nowhere", None, "in"])
    check_not_read(["out/b.png", "out", "new.png", "/dev/null"], [source, "in", None, "/dev/null"])
    with pytest.raises(OutputError, match="in/a.png"):
        check_not_read([], [source], emptied=["in"])
    check_not_read([], [source], emptied=["nowhere", "link/none"])


# ----------------------------------------------------------------------- numba


def test_numba_compiles_where_no_cache_can_be_written(tmp_path):
    """A file stands where numba wants its folder, for permissions do not bind root."""
    (tmp_path / "compiled.py").write_text(
        'from numba import njit\n@njit("f8(f8)", cache=True)\ndef double(x):\n    return 2 * x\n'
    )
    (tmp_path / "__pycache__").touch()
    code = """
import importlib
from SDMatte.runtime.numba_cache import load_compiled
try:
    import compiled
except RuntimeError as error:
    print("no locator available" in str(error))
print(load_compiled(lambda: importlib.import_module("compiled")).double(4.0))
import numba
print(numba.njit.__module__)
"""
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache"}
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **nowhere, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True", "8.0", "numba.core.decorators"], done.stderr
