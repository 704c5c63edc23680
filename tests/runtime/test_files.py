"""Names in any spelling, atomic writing, and inputs that are not overwritten."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from SDMatte.errors import DataError, OutputError
from SDMatte.runtime.files import (
    NameLookup,
    check_not_read,
    clear_leftovers,
    name_key,
    replace_file,
    stem_key,
    write_text,
)

ROOT = Path(__file__).parents[2]
NFC = unicodedata.normalize("NFC", "café")
NFD = unicodedata.normalize("NFD", "café")


@pytest.fixture
def distinct_spellings(tmp_path):
    """Skip where the file system normalizes names."""
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


def test_files_are_found_in_another_spelling(tmp_path, distinct_spellings):
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


# --------------------------------------------------------------------- writing


def test_files_are_replaced_atomically(tmp_path):
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


def test_files_of_killed_processes_are_deleted(tmp_path):
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


def test_inputs_are_protected_under_any_name(tmp_path, monkeypatch):
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


def test_numba_compiles_without_a_cache(tmp_path):
    """A file blocks numba's folder: permissions do not apply to root."""
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
