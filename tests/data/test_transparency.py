"""Lists of transparent samples, the rule used without a list, and the tool that writes lists."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_trees import disc, write_aim, write_composition

from SDMatte.data import catalog, listing
from SDMatte.data.listing import read_transparent_list
from SDMatte.data.transparency import (
    is_transparent_alpha,
    transparent_fraction,
    transparent_fractions,
)
from SDMatte.errors import DataError
from SDMatte.images.io import read_image, write_image

NAME = "Composition-1K_transparent_samples.txt"


def test_list(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "REPOSITORY_LISTS", tmp_path / "repository")
    assert read_transparent_list("Composition-1K", tmp_path) is None
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / NAME).write_text("x.png\n")
    assert read_transparent_list("Composition-1K", tmp_path) == {"x"}
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt" / NAME).write_text("y.jpg\n\n  a b.1.png  \r\nä\n", encoding="utf-8")
    assert read_transparent_list("Composition-1K", tmp_path) == {"y", "a b.1", "ä"}
    (tmp_path / "txt" / NAME).write_text("y.jpg\r\n", encoding="utf-8-sig")
    assert read_transparent_list("Composition-1K", tmp_path) == {"y"}
    (tmp_path / "txt" / NAME).write_text("")
    assert read_transparent_list("Composition-1K", tmp_path) == frozenset()
    (tmp_path / "txt" / NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=NAME):
        read_transparent_list("Composition-1K", tmp_path)


def test_list_decides(tmp_path):
    write_composition(tmp_path)
    write_aim(tmp_path)
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt" / NAME).write_text("y.png\n")
    samples = catalog.list_samples("Composition-1K", tmp_path)
    assert [s.is_trans for s in samples] == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert {s.is_trans for s in catalog.list_samples("AIM-500", tmp_path, False)} == {None}


def hairs(size=300):
    """A head with a wide rim of strands, like fur or hair."""
    rng = np.random.default_rng(0)
    canvas = (disc(size, size, size * 0.25) * 255).astype(np.uint8)
    for angle in rng.uniform(0, 2 * np.pi, 500):
        end = size / 2 + size * 0.36 * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(
            canvas, (size // 2, size // 2), tuple(end.astype(int).tolist()), 255, 1, cv2.LINE_AA
        )
    return canvas.astype(np.float32) / 255


def lattice(size=300):
    grid = np.zeros((size, size), np.float32)
    grid[20:280, 20:280] = 1
    for i in range(30, 270, 20):
        for j in range(30, 270, 20):
            grid[i : i + 10, j : j + 10] = 0
    return grid


def test_rule():
    solid = disc(300, 400, 120)
    for opaque in (solid, cv2.GaussianBlur(solid, (0, 0), 4), hairs(), lattice(), 0 * solid):
        assert not is_transparent_alpha(opaque)
    for transparent in (solid * 0.5, solid * np.linspace(0, 1, 400, dtype=np.float32)):
        assert is_transparent_alpha(transparent)
    glass = solid * 0.2
    glass[140:160] = solid[140:160]  # with a solid band
    assert is_transparent_alpha(glass)


@pytest.mark.parametrize("shape", [(2000, 3000), (40, 60), (1, 5000), (3, 3)])
def test_rule_at_any_size(shape):
    assert not is_transparent_alpha(np.ones(shape, np.float32))
    assert is_transparent_alpha(np.full(shape, 0.5, np.float32))


def half_glass(part, size=256):
    """A square whose upper part, a given fraction of it, is glass."""
    alpha = np.ones((size, size), np.float32)
    alpha[: round(part * size)] = 0.5
    return alpha


@pytest.mark.parametrize("part", [0, 0.2, 0.5, 1])
def test_fraction(part):
    assert transparent_fraction(half_glass(part)) == pytest.approx(part, abs=0.01)
    assert is_transparent_alpha(half_glass(part)) == (part > 0.25)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_fractions_of_files(tmp_path, num_workers):
    parts = [0.1, 0.3, 0.6, 0.9] * 3
    paths = [write_image(tmp_path / f"{i}.png", half_glass(p)) for i, p in enumerate(parts)]
    paths[5].write_bytes(b"")
    fractions = list(transparent_fractions(paths, num_workers))
    error = fractions.pop(5)
    parts.pop(5)
    assert fractions == pytest.approx(parts, abs=0.01)
    assert isinstance(error, DataError) and str(paths[5]) in str(error)


# ------------------------------------------------- tools/make_transparent_list.py


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).resolve().parents[2] / "tools/make_transparent_list.py"
    spec = importlib.util.spec_from_file_location("make_transparent_list", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def alphas(tmp_path):
    """Alphas named by their fractions, one that cannot be read, and a text file."""
    folder = tmp_path / "GT"
    for part in (0.0, 0.1, 0.2, 0.3, 0.9):
        write_image(folder / f"ä {part:.1f}.png", half_glass(part))
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("")
    return folder


def test_tool_writes_list_and_sheet(tool, alphas, tmp_path, caplog):
    out, sheet = tmp_path / "new/txt" / NAME, tmp_path / "sheet.png"
    argv = [str(alphas), str(out), "--sheet", str(sheet), "--num-workers", "2"]
    assert tool(argv) == 0
    assert out.read_text(encoding="utf-8") == "ä 0.3.png\nä 0.9.png\n"
    assert read_transparent_list("Composition-1K", tmp_path / "new") == {"ä 0.3", "ä 0.9"}
    assert "broken.png: it is not an image" in caplog.text
    # The two that are listed, and the one that nearly is: white below the glass.
    image = read_image(sheet)
    upper = image[60:70]  # in the first row of tiles, below a line of labels
    glass = [bool((upper[:, x : x + 120] == 128).all()) for x in range(20, 1280, 160)]
    assert glass == [True, False, False, False, False, False, False, False]
    lower = image[158:164]
    white = [bool((lower[:, x : x + 120] == 255).all()) for x in range(20, 1280, 160)]
    assert white == [False, True, True, False, False, False, False, False]
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_tool_with_another_threshold(tool, alphas, tmp_path, caplog):
    out, sheet = tmp_path / "list.txt", tmp_path / "sheet.png"
    more = ["--threshold", "0.15", "--sheet", str(sheet), "--most", "2"]
    caplog.set_level("INFO")
    assert tool([str(alphas), str(out), *more]) == 0
    assert out.read_text(encoding="utf-8") == "ä 0.2.png\nä 0.3.png\nä 0.9.png\n"
    assert "shows 2 of 4" in caplog.text
    assert tool([str(alphas), str(out), "--threshold", "1", "--sheet", str(sheet)]) == 0
    assert out.read_text(encoding="utf-8") == ""


@pytest.mark.parametrize(
    ("folder", "more", "sentence"),
    [
        ("nowhere", [], "nowhere not found"),
        ("broken", [], "No readable alpha in"),
        ("GT", ["--threshold", "25"], "--threshold 25.0: must be from 0 to 1."),
        ("GT", ["--most", "0"], "--most 0: must be at least 1."),
        ("GT", ["--num-workers", "-2"], "--num-workers -2: must be at least 0"),
        ("GT", ["--sheet", "sheet.gif"], "Cannot write sheet.gif: the suffix must be one of"),
    ],
)
def test_tool_keeps_the_old_list_when_it_fails(
    tool, alphas, tmp_path, capsys, folder, more, sentence
):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/1.png").write_bytes(b"")
    out = tmp_path / "list.txt"
    out.write_text("mine.png\n")
    assert tool([str(tmp_path / folder), str(out), *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and sentence in error
    assert out.read_text() == "mine.png\n"


def test_tool_overwrites_no_alpha_and_logs_skipped_files(tool, alphas, capsys, caplog):
    sheet = alphas / "ä 0.9.png"
    before = sheet.read_bytes()
    assert tool([str(alphas), str(alphas / "list.txt"), "--sheet", str(sheet)]) == 2
    assert "must not be overwritten" in capsys.readouterr().err
    assert sheet.read_bytes() == before and not (alphas / "list.txt").exists()
    assert "1 file left out, not images: notes.txt" in caplog.text


def test_lists_in_another_unicode_normalization(tmp_path):
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt" / NAME).write_text("cafe\u0301.PNG\n", encoding="utf-8")
    assert read_transparent_list("Composition-1K", tmp_path) == {"caf\xe9"}


def test_tool_names_a_list_that_cannot_be_written(tool, alphas, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert tool([str(alphas), str(tmp_path / "file/list.txt")]) == 2
    assert "Cannot write" in capsys.readouterr().err
