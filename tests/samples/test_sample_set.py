import hashlib
import json
import socket

import cv2
import numpy as np
import pytest

from SDMatte.errors import DataError
from SDMatte.samples import (
    OBJECT_KINDS,
    drawing,
    foreground,
    make_sample_set,
    real_photographs,
    sample_set,
)

SMALL = {"num_train": 12, "num_test": 6, "size": 96, "num_workers": 1, "progress": False}
TRAIN = "Combined_Dataset/Training_set"


def digest(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_sample_set(tmp_path_factory.mktemp("set") / "samples", **SMALL)


def test_number_of_workers_does_not_change_bytes(made, tmp_path):
    again = make_sample_set(tmp_path / "two", **{**SMALL, "num_workers": 2})
    assert digest(again.root) == digest(made.root)
    assert again.samples == made.samples


def test_other_seed_gives_other_images(made, tmp_path):
    other = make_sample_set(tmp_path / "x", **{**SMALL, "num_train": 1, "num_test": 1, "seed": 1})
    assert not set(digest(other.root).values()) & set(digest(made.root).values())


def test_layout(made):
    root = made.root
    fg = sorted(p.stem for p in (root / TRAIN / "combined_fg").glob("*.jpg"))
    assert fg == sorted(p.stem for p in (root / TRAIN / "combined_alpha").glob("*.png"))
    assert len(fg) == 12
    original = sorted(p.stem for p in (root / "AIM-500/original").glob("*.jpg"))
    assert len(original) == 6
    for folder in ("mask", "trimap"):
        assert original == sorted(p.stem for p in (root / "AIM-500" / folder).glob("*.png"))
    assert len(list((root / "BG-20K/train").glob("*.jpg"))) == 4
    for stem in fg:
        image = cv2.imread(str(root / TRAIN / "combined_fg" / f"{stem}.jpg"))
        alpha = cv2.imread(str(root / TRAIN / "combined_alpha" / f"{stem}.png"), -1)
        assert image.shape == (*alpha.shape, 3) and alpha.dtype == np.uint8


def test_manifest_lists_every_file(made):
    manifest = json.loads((made.root / sample_set.MANIFEST).read_text())
    found = digest(made.root)
    found.pop(sample_set.MANIFEST)
    assert manifest["files"] == {
        path: {"bytes": (made.root / path).stat().st_size} for path in found
    }


def test_transparent_lists(made):
    for part, path in (("train", "Composition-1K"), ("test", "AIM-500")):
        listed = (made.root / f"txt/{path}_transparent_samples.txt").read_text().split()
        samples = made.samples[part]
        assert listed == sorted(
            n for n, s in samples.items() if OBJECT_KINDS[s["kind"]].transparent
        )
    assert any(s["transparent"] for s in made.samples["train"].values())


def test_trimap_agrees_with_alpha(made):
    for name in made.samples["test"]:
        alpha = cv2.imread(str(made.root / "AIM-500/mask" / name), -1)
        trimap = cv2.imread(str(made.root / "AIM-500/trimap" / name), -1)
        assert set(np.unique(trimap)) <= {0, 128, 255}
        assert (alpha[trimap == 0] == 0).all() and (alpha[trimap == 255] == 255).all()
        assert (trimap == 128).any()


def test_training_has_no_held_out_kinds_or_photographs(made):
    assert {s["kind"] for s in made.samples["train"].values()} <= {
        name for name, kind in OBJECT_KINDS.items() if not kind.held_out
    }
    photos = {photo.name: photo.held_out for photo in real_photographs()}
    used = [s["background"] for s in made.samples["test"].values()]
    assert all(name == "drawn" or photos[name] for name in used)
    held_out = [s for s in made.samples["test"].values() if s["held_out_kind"]]
    assert len(held_out) == 3 and all(OBJECT_KINDS[s["kind"]].held_out for s in held_out)


def test_training_backgrounds_read_no_held_out_photograph(monkeypatch):
    read = []
    load = sample_set.real_photographs()[0].__class__.load
    monkeypatch.setattr(
        "SDMatte.samples.photos.Photograph.load", lambda p: (read.append(p), load(p))[1]
    )
    for seed in range(40):
        sample_set.background(np.random.default_rng(seed), 32, 32, held_out=False)
    assert read and not any(photo.held_out for photo in read)


def test_every_kind_appears_early():
    train = {sample_set._kind_at(0, "train", False, i) for i in range(60)}
    test = {sample_set._kind_at(0, "test", i % 2 == 0, i // 2) for i in range(24)}
    assert train == {name for name, kind in OBJECT_KINDS.items() if not kind.held_out}
    assert test == set(OBJECT_KINDS)


def test_photographs():
    photos = real_photographs()
    assert len({photo.name for photo in photos}) == len(photos) > 0
    assert {photo.held_out for photo in photos} == {True, False}
    boxed = [photo for photo in photos if photo.box]
    assert boxed and all(photo.held_out for photo in boxed)
    for photo in boxed:
        h, w = photo.load().shape[:2]
        x0, y0, x1, y1 = photo.box
        assert 0 <= x0 < x1 < w and 0 <= y0 < y1 < h


def test_needs_no_network(monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    make_sample_set(tmp_path / "s", **{**SMALL, "num_train": 2, "num_test": 1})


@pytest.mark.parametrize("name", list(OBJECT_KINDS))
def test_mattes_are_not_degenerate(name):
    fractions = []
    for seed in range(3):
        color, alpha = foreground(np.random.default_rng(seed), name, 120, 112)
        assert color.shape == (120, 112, 3) and alpha.shape == (120, 112)
        assert color.min() >= 0 and color.max() <= 1 and np.isfinite(color).all()
        assert alpha.min() == 0 and alpha.max() > 0.5
        assert 0.02 < alpha.mean() < 0.8
        fractions.append(((alpha > 0.02) & (alpha < 0.98)).mean())
    assert np.mean(fractions) > (0.1 if OBJECT_KINDS[name].transparent else 0.008)


def test_drawing_depends_only_on_the_generator():
    state = np.random.get_state()[1].copy()
    for name in OBJECT_KINDS:
        first = foreground(np.random.default_rng(5), name, 56, 48)
        again = foreground(np.random.default_rng(5), name, 56, 48)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize(("x", "y", "r"), [(50, 50, 30), (40.3, 51.7, 22.4)])
def test_coverage_of_a_disc(x, y, r):
    disc = drawing.blob(np.random.default_rng(0), x, y, r, r, rough=0, n=400)
    cover = drawing.fill(100, 110, [disc])
    assert cover.sum() == pytest.approx(np.pi * r**2, rel=0.02)
    columns, rows = cover.sum(0), cover.sum(1)
    assert (columns * (np.arange(110) + 0.5)).sum() / cover.sum() == pytest.approx(x, abs=0.1)
    assert (rows * (np.arange(100) + 0.5)).sum() / cover.sum() == pytest.approx(y, abs=0.1)


def test_coverage_of_a_thin_line():
    path = np.array([[[10.0, 20.0], [90.0, 60.0]]])
    cover = drawing.fill_quads(80, 100, drawing.ribbons(path, np.array(2.0)))
    assert cover.sum() == pytest.approx(2 * np.hypot(80, 40), rel=0.15)


def test_shapes_are_clipped_to_the_canvas():
    square = np.array([[-50.0, -50], [20, -50], [20, 20], [-50, 20]])
    cover = drawing.fill(40, 40, [square])
    assert cover.sum() == pytest.approx(400, rel=0.03)
    assert drawing.fill(40, 40, [square - 100]).sum() <= 1


def test_colors_are_extrapolated_beyond_the_edge():
    painting = drawing.Painting(64, 64)
    painting.add(drawing.fill(64, 64, [np.array([[20.0, 20], [40, 20], [30, 45]])]), (0.8, 0.4, 0))
    assert np.abs(painting.color() - np.float32((0.8, 0.4, 0))).max() < 0.01


def test_test_image_is_an_exact_composite(monkeypatch):
    """Composites over white and black differ by 1 - alpha."""
    for index in range(8):
        images = []
        for level in (0, 1):
            monkeypatch.setattr(
                sample_set,
                "background",
                lambda rng, h, w, held_out, level=level: (
                    np.full((h, w, 3), level, np.float32), "flat"),
            )  # fmt: skip
            rng = np.random.default_rng(index)
            image, alpha, entry = sample_set.compose_test_image(rng, 64, 0, index)
            images.append(image)
        covered = (1 - (images[1] - images[0])).mean(-1)
        if entry["distractor"] is None:
            assert np.abs(covered - alpha).max() < 1e-5
        else:
            assert (covered >= alpha - 1e-5).all()


def test_stored_test_image_is_the_composed_one(made):
    name = next(n for n in made.samples["test"] if n.startswith("0002"))
    rng = np.random.default_rng([0, 2, 2])
    image, alpha, entry = sample_set.compose_test_image(rng, 96, 0, 2)
    assert entry == made.samples["test"][name]
    assert np.array_equal(cv2.imread(str(made.root / "AIM-500/mask" / name), -1),
                          np.round(alpha * 255))  # fmt: skip
    stored = cv2.imread(str(made.root / f"AIM-500/original/{name[:-4]}.jpg"))[..., ::-1]
    assert np.abs(stored - image * 255.0).mean() < 4


def test_second_run_changes_nothing(made, caplog):
    before = {p: p.stat().st_mtime_ns for p in made.root.rglob("*")}
    with caplog.at_level("INFO"):
        again = make_sample_set(made.root, **SMALL)
    assert again.samples == made.samples
    assert before == {p: p.stat().st_mtime_ns for p in made.root.rglob("*")}
    assert "is up to date" in caplog.text


TINY = {**SMALL, "num_train": 2, "num_test": 1, "size": 64}


def test_other_parameters_replace_only_own_files(tmp_path, caplog):
    caplog.set_level("INFO")
    old = make_sample_set(tmp_path / "s", **TINY)
    mine = old.root / "AIM-500/original/holiday.jpg"
    mine.write_bytes(b"mine")
    assert "Replacing" not in caplog.text
    new = make_sample_set(tmp_path / "s", **{**TINY, "num_train": 1, "seed": 3})
    seed = TINY.get("seed", 0)
    assert f"s, made with num_train 2 (now 1), seed {seed} (now 3)." in caplog.text
    assert mine.read_bytes() == b"mine"
    mine.unlink()
    fresh = make_sample_set(tmp_path / "t", **{**TINY, "num_train": 1, "seed": 3})
    assert digest(new.root) == digest(fresh.root)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "t"]


def test_missing_file_is_restored(tmp_path):
    made = make_sample_set(tmp_path / "s", **TINY)
    before = digest(made.root)
    next((made.root / "AIM-500/mask").iterdir()).unlink()
    make_sample_set(made.root, **TINY)
    assert digest(made.root) == before


def test_failed_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(root, path, content):
        raise OSError("disk full")

    kept = make_sample_set(tmp_path / "kept", **TINY)
    before = digest(kept.root)
    monkeypatch.setattr(sample_set, "_write", fail)
    for name in ("new", "kept"):
        with pytest.raises(OSError):
            make_sample_set(tmp_path / name, **{**TINY, "seed": 9})
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and digest(kept.root) == before


def test_interrupted_replacement_is_repaired(tmp_path, monkeypatch):
    made = make_sample_set(tmp_path / "s", **TINY)
    replace, calls = sample_set.os.replace, []

    def fail_later(a, b):
        calls.append(a)
        if len(calls) == 4:
            raise OSError("killed")
        replace(a, b)

    monkeypatch.setattr(sample_set.os, "replace", fail_later)
    with pytest.raises(OSError):
        make_sample_set(made.root, **{**TINY, "seed": 9})
    monkeypatch.undo()
    make_sample_set(made.root, **TINY)
    assert digest(made.root) == digest(make_sample_set(tmp_path / "t", **TINY).root)


def test_refuses_foreign_folders(tmp_path):
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "beach.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="holiday is not empty"):
        make_sample_set(folder, **TINY)
    with pytest.raises(DataError, match="is a file"):
        make_sample_set(folder / "beach.jpg", **TINY)
    (folder / sample_set.MANIFEST).write_text("{}")
    with pytest.raises(DataError, match="does not describe a sample set"):
        make_sample_set(folder, **TINY)
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(DataError, match="num_train"):
        make_sample_set(tmp_path / "s", num_train=0)


def test_writes_to_an_empty_folder(tmp_path):
    (tmp_path / "s").mkdir()
    assert make_sample_set(tmp_path / "s", **TINY).root.is_dir()
