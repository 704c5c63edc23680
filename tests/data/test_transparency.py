"""Lists of transparent samples, and the rule where there is none."""

import cv2
import numpy as np
import pytest
from data_trees import disc, write_aim, write_composition

from SDMatte.data import catalog, transparency
from SDMatte.data.transparency import is_transparent_alpha, read_transparent_list
from SDMatte.errors import DataError

NAME = "Composition-1K_transparent_samples.txt"


def test_list(tmp_path, monkeypatch):
    monkeypatch.setattr(transparency, "REPOSITORY_LISTS", tmp_path / "repository")
    assert read_transparent_list("Composition-1K", tmp_path) is None
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / NAME).write_text("x.png\n")
    assert read_transparent_list("Composition-1K", tmp_path) == {"x"}
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt" / NAME).write_text("y.jpg\n\n  a b.1.png  \r\nä\n", encoding="utf-8")
    assert read_transparent_list("Composition-1K", tmp_path) >= {"y", "a b.1", "ä"}
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
    """A head with a wide rim of strands, as fur and hair have it."""
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
