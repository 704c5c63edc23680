"""Listing and checking sets: samples, and every kind of problem."""

import shutil

import numpy as np
import pytest
from data_trees import PAIR, SETTINGS, disc, random_image, write_aim, write_backgrounds, write_pairs

from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS
from SDMatte.data.check import (
    check_set,
    list_set,
    list_table,
    obstacles,
    parts_of,
    summary_table,
)
from SDMatte.data.dataset import MattingDataset
from SDMatte.data.sheets import sample_sheet, source_sheet
from SDMatte.errors import ConfigError, DataError
from SDMatte.images.io import read_image, write_image


def check(item, root, training=True, workers=0):
    return check_set(list_set(item, root, training), workers)


def findings(report):
    return {(f.kind, f.text.replace(f"{report.root}/", "")) for f in report.findings}


# ----------------------------------------------------------------------- listing


@pytest.mark.parametrize("training", [True, False])
def test_every_known_set_is_listed_and_checked(layout_root, training):
    for name in TRAIN_SETS if training else TEST_SETS:
        listed = list_set(name, layout_root, training)
        assert listed.state == "yes" and listed.samples, name
        report = check_set(listed, num_workers=0)
        assert report.findings == () and report.num_bad == 0, name
        assert obstacles([report], 0) == []


def test_expected_numbers_are_those_of_the_published_schedule(tmp_path):
    def expected(item, training=True):
        return list_set(item, tmp_path, training).expected

    names = ["Composition-1K", "DIS-646", "AM-2K", "UHRSD", "RefMatte"]
    assert sum(expected(name) for name in names) == 24_401
    assert expected({"name": "AM-2K", "composites": 4}) == 9000
    assert expected({"name": "RefMatte", "count": 50, "weight": 2}) == 50
    assert expected({"name": "RefMatte", "list_file": "x.txt"}) is None
    assert [expected(name, False) for name in ("AIM-500", "AM-2K", "UHRSD")] == [500, 200, 988]


def test_kinds_and_folders(layout_root, tmp_path):
    assert list_set("AM-2K", layout_root).kind == "natural + composite"
    assert list_set("DIS-646", layout_root).kind == "composite"
    assert list_set("RefMatte", layout_root).kind == "natural"
    assert list_set("UHRSD", tmp_path).entry.folders == ("UHRSD/UHRSD_TR_2K", "UHRSD/UHRSD_TE_2K")
    write_pairs(tmp_path, ["a"])
    pair = list_set({**PAIR, "name": "mine"}, tmp_path)
    assert (pair.name, pair.entry.folders, pair.expected) == ("mine", ("image", "alpha"), None)


def test_missing_and_incomplete_sets(tmp_path):
    listed = list_set("AIM-500", tmp_path, training=False)
    assert (listed.state, listed.samples) == ("no", ()) and "no " in list_table([listed])
    write_aim(tmp_path, ["a"])
    shutil.rmtree(tmp_path / "AIM-500/trimap")
    half = list_set("AIM-500", tmp_path, training=False)
    assert half.state == "incomplete" and "trimap not found" in half.problem
    table = list_table([half])
    assert "incomplete" in table and "trimap not found" in table
    report = check_set(listed, num_workers=0)
    assert obstacles([report], 100) == [f"AIM-500 (test): {listed.problem}"]


def test_parts_of_a_name():
    assert parts_of("AM-2K") == ["train", "test"]
    assert parts_of("DIS-646") == ["train"]
    assert parts_of("RefMatte_RW_100") == ["test"]
    assert parts_of("AM-2K", "test") == ["test"]
    assert parts_of({"name": "AM-2K", "weight": 2}) == ["train"]  # a test has no weights
    with pytest.raises(ConfigError, match="Unknown setting AM-2K.shares"):
        parts_of({"name": "AM-2K", "shares": 2})
    assert parts_of(PAIR) == ["train"] and parts_of(PAIR, "test") == ["test"]
    with pytest.raises(DataError, match="Unknown set 'AIM'; known are Comp.*, AIM-500, P3M"):
        parts_of("AIM")
    with pytest.raises(DataError, match="DIS-646 is not a test set"):
        parts_of("DIS-646", "test")
    with pytest.raises(ConfigError, match="AM-2K.composits; did you mean composites"):
        parts_of({"name": "AM-2K", "composits": 4})


# ---------------------------------------------------------------------- checking


@pytest.fixture
def damaged(tmp_path):
    """Nine pairs, six of them with a problem, and an image without an alpha."""
    write_pairs(tmp_path, [f"{i}" for i in range(9)])
    (tmp_path / "image/0.jpg").unlink()
    (tmp_path / "alpha/1.png").write_bytes((tmp_path / "alpha/1.png").read_bytes()[:60])
    (tmp_path / "image/2.jpg").write_bytes(b"")
    write_image(tmp_path / "alpha/3.png", disc(40, 50))
    write_image(tmp_path / "alpha/4.png", np.zeros((40, 60)))
    write_image(tmp_path / "alpha/5.png", np.ones((40, 60)))
    write_image(tmp_path / "image/extra.jpg", random_image(0))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_damage_is_found(damaged, workers):
    report = check(PAIR, damaged, workers=workers)
    assert findings(report) == {
        ("missing", "image/0.jpg (image)"),
        (
            "unreadable",
            "Cannot read alpha/1.png: the image is damaged or truncated (image file is truncated).",
        ),
        ("unreadable", "Cannot read image/2.jpg: the file is empty."),
        ("size", "image/3.jpg has 60x40 pixels, its alpha alpha/3.png 50x40"),
        ("zeros", "alpha/4.png"),
        ("ones", "alpha/5.png"),
        ("spare", "image/extra.jpg"),
    }
    assert report.num_bad == 4
    assert [sample.alpha for sample in report.usable] == [f"alpha/{i}.png" for i in range(4, 9)]
    lines = list(report.lines())
    assert lines[0] == "pair (training): 9 samples" and len(lines) == 8
    assert all(line.startswith("  ") for line in lines[1:])
    row = summary_table([report]).splitlines()[-1].split()
    assert row == ["pair", "training", "9", "1", "2", "1", "1", "1", "1", "4"]


def test_training_skips_what_the_check_finds(damaged):
    report = check(PAIR, damaged)
    options = {"root": damaged, "size": 16, "settings": {"kernel_sizes": [3, 5]}}
    assert obstacles([report], 4) == []
    dataset = MattingDataset(PAIR, max_bad_samples=4, **options)
    names = {dataset[i]["alpha_path"] for i in range(len(dataset))}
    assert names == {str(damaged / sample.alpha) for sample in report.usable}
    assert "4 of 9 training samples are unusable; at most 3 may" in obstacles([report], 3)[0]
    dataset = MattingDataset(PAIR, max_bad_samples=3, **options)
    with pytest.raises(DataError, match="4 training samples cannot be read, 3 are allowed"):
        [dataset[i] for i in range(len(dataset))]


def test_the_limit_holds_over_all_training_sets(damaged):
    reports = [check({**PAIR, "name": name}, damaged) for name in ("a", "b")]
    assert obstacles(reports, 8) == []
    assert "8 of 18 training samples" in obstacles(reports, 7)[0]


def test_a_test_set_must_be_complete(damaged):
    report = check(PAIR, damaged, training=False)
    (text,) = obstacles([report], 100)
    assert "1 file is missing" in text and "image/0.jpg" in text
    write_image(damaged / "image/0.jpg", random_image(0))
    (text,) = obstacles([check(PAIR, damaged, training=False)], 100)
    assert text == ("pair (test): 3 of 9 samples are unusable; a test stops at the first.")


def test_composites_and_trimaps(tmp_path):
    write_pairs(tmp_path, ["a", "b"])
    write_backgrounds(tmp_path, 2)
    (tmp_path / "BG-20K/train/b01.jpg").write_bytes(b"not an image")
    report = check({**PAIR, "composites": 3}, tmp_path)
    # Backgrounds 0, 1, 0 of the one foreground, and 1, 0, 1 of the other.
    assert report.num_bad == 3 and [f.kind for f in report.findings] == ["unreadable"]
    assert report.kind == "composite" and len(report.samples) == 6

    write_aim(tmp_path, ["a", "b"])
    write_image(tmp_path / "AIM-500/trimap/b.png", np.zeros((30, 60)))
    report = check("AIM-500", tmp_path, training=False)
    assert [f.kind for f in report.findings] == ["size"] and "trimap/b.png" in str(report.findings)


def test_without_any_usable_sample(tmp_path):
    write_pairs(tmp_path, ["a"])
    (tmp_path / "alpha/a.png").write_bytes(b"")
    assert "1 of 1 training samples are unusable" in obstacles([check(PAIR, tmp_path)], 100)[0]


# ------------------------------------------------------------------------ sheets


def test_the_sheet_of_a_set_shows_images_beside_their_alphas(tmp_path):
    for i, value in enumerate((30, 60, 90)):
        write_image(tmp_path / f"image/{i}.png", np.full((20, 20, 3), value, np.uint8))
        write_image(tmp_path / f"alpha/{i}.png", np.full((20, 20), value + 100, np.uint8))
    samples = list_set(PAIR, tmp_path).samples
    sheet = source_sheet(samples, tmp_path, columns=4, tile=32)
    rows = sheet[18 + 16 :: 18 + 32, 16::32, 0]
    assert rows[0].tolist() == [30, 130, 60, 160] and rows[1, :2].tolist() == [90, 190]
    few = source_sheet(samples, tmp_path, count=2, columns=4, tile=32)
    assert few[18 + 16, 16::32, 0].tolist() == [30, 130, 90, 190]  # evenly spaced


def test_the_sheet_of_samples_draws_every_prompt(tmp_path):
    root = write_pairs(tmp_path, ["a", "b"], shape=(48, 48))
    write_image(root / "image/a.jpg", np.full((48, 48, 3), 200, np.uint8))
    dataset = MattingDataset(PAIR, root=root, size=64, training=False, settings=SETTINGS)
    sheet = sample_sheet(dataset, [0], tile=64 + 4)
    cells = np.split(sheet[18 + 2 : -2], 6, axis=1)
    image, box, points, mask, trimap, alpha = (cell[:, 2:-2].astype(int) for cell in cells)
    sample = dataset[0]
    assert np.abs(image - 200).max() < 8
    assert np.abs(alpha[..., 0] - (sample["alpha"][0].numpy() + 1) * 127.5).max() <= 1
    assert set(np.unique(trimap)) == {0, 128, 255}
    yellow = (np.abs(box - (255, 210, 0)) < 8).all(axis=2)
    x0, y0, x1, y1 = (sample["bbox_coords"].numpy() * 64).round().astype(int)
    assert yellow[y0, x0 : x1 + 1].all() and yellow[y0 : y1 + 1, x1].all()
    for cell, name, least in (
        (box, "bbox_mask", 0.5),
        (mask, "mask", 0.5),
        (points, "point_mask", 0.2),
    ):
        lit = cell[..., 2] > 145  # in blue, so that the yellow strokes do not count
        inside = sample[name][0].numpy() > 0
        assert (lit & ~inside).sum() == 0 and least < lit.sum() / inside.sum() <= 1
    shown = (sample["point_coords"].numpy() * 64).round().astype(int).reshape(-1, 2)
    assert all((points[y, x] == (255, 210, 0)).all() for x, y in shown)
    with pytest.raises(ConfigError, match="needs at least one image"):
        sample_sheet(dataset, [])


def test_prompts_are_drawn_at_their_positions_with_keep_aspect(tmp_path):
    root = write_pairs(tmp_path, ["a"], shape=(40, 80))
    settings = {**SETTINGS, "keep_aspect": True, "size_multiple": 8}
    dataset = MattingDataset(PAIR, root=root, size=32, training=False, settings=settings)
    height, width = dataset[0]["alpha"].shape[1:]
    assert height < width
    sheet = sample_sheet(dataset, [0], tile=width + 4)
    top = 18 + 2 + (width - height) // 2
    box = sheet[top : top + height, width + 6 : 2 * width + 6]
    yellow = (np.abs(box.astype(int) - (255, 210, 0)) < 8).all(axis=2)
    corners = dataset[0]["bbox_coords"].numpy().reshape(2, 2) * (width, height)
    (x0, y0), (x1, y1) = corners.round().astype(int)
    assert yellow[y0, x0 : x1 + 1].all() and yellow[y0 : y1 + 1, x1].all()


def test_the_sheet_of_a_sample_without_points(tmp_path):
    root = write_pairs(tmp_path, ["a"])
    write_image(root / "alpha/a.png", np.zeros((40, 60)))
    dataset = MattingDataset(PAIR, root=root, size=32, settings={"kernel_sizes": [3, 5]})
    path = write_image(tmp_path / "s.png", sample_sheet(dataset, [(3, 0)], tile=48))
    assert read_image(path).shape == (18 + 48, 6 * 48, 3)
