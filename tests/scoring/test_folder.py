"""Scoring of a folder, from Python and on the command line."""

import csv
import json
import os

import numpy as np
import pytest

from SDMatte.cli.common import run_command
from SDMatte.cli.main import build_parser, main
from SDMatte.errors import DataError
from SDMatte.images.io import read_alpha, read_image, read_trimap, write_image
from SDMatte.scoring import score_folder, score_pair
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.results import read_result


@pytest.fixture
def preds(truths):
    rng = np.random.default_rng(1)
    for path in (truths / "truth").iterdir():
        alpha = np.rint(255 * read_alpha(path))
        noisy = np.clip(alpha + rng.normal(0, 10, alpha.shape), 0, 255).astype(np.uint8)
        write_image(truths / "pred" / path.name, noisy)
    return truths / "pred"


def command(*arguments):
    args = build_parser("score").parse_args(["score", *map(str, arguments)])
    return run_command(args.run, args)


@pytest.mark.parametrize("protocol", ["official", "corrected"])
@pytest.mark.parametrize("with_trimaps", [False, True])
def test_scores_are_means_over_the_images(truths, preds, protocol, with_trimaps):
    trimaps = truths / "trimaps" if with_trimaps else None
    result = score_folder(preds, truths / "truth", trimaps, protocol)
    rows = []
    for i in range(5):
        pred, true = (read_alpha(d / f"t{i}.png") for d in (preds, truths / "truth"))
        trimap = read_trimap(trimaps / f"t{i}.png") if with_trimaps else None
        rows.append(score_pair(pred, true, trimap, protocol))
    assert [image.name for image in result.images] == [f"t{i}" for i in range(5)]
    for key in METRICS:
        assert result.scores[key] == pytest.approx(np.mean([r[key] for r in rows]), rel=1e-6)
    assert (result.protocol, result.trimap_restricted) == (protocol, with_trimaps)


def test_processes_do_not_change_the_scores(truths, preds):
    here, two = (score_folder(preds, truths / "truth", num_workers=n) for n in (0, 2))
    assert here == two


def test_lists_all_problems(truths, preds):
    (preds / "t0.png").unlink()
    write_image(preds / "alone.png", np.zeros((4, 4), np.uint8))
    (preds / "t1.png").write_bytes(b"not an image")
    write_image(preds / "t2.png", np.zeros((4, 4), np.uint8))
    (truths / "trimaps" / "t3.png").unlink()
    write_image(preds / "t4.jpg", read_alpha(preds / "t4.png"))
    with pytest.raises(DataError) as caught:
        score_folder(preds, truths / "truth", truths / "trimaps")
    lines = str(caught.value).splitlines()
    assert "6 problems" in lines[0]
    for part in (
        "no prediction for",
        "no true alpha for",
        "no trimap for",
        "t1.png: Cannot read",
        "prediction is 4x4, but its true alpha",
        "ambiguous: t4.jpg and t4.png",
    ):
        assert sum(part in line for line in lines[1:]) == 1, part
    assert len(lines) == 7


def test_lists_wrong_sizes(truths, preds):
    for i in (1, 3):
        write_image(preds / f"t{i}.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="2 problems"):
        score_folder(preds, truths / "truth")


def test_missing_and_empty_folders(truths, preds):
    with pytest.raises(DataError, match="not found"):
        score_folder(truths / "nothing", truths / "truth")
    (truths / "empty").mkdir()
    with pytest.raises(DataError, match="No images found in"):
        score_folder(preds, truths / "empty")


def test_command(truths, preds, capsys):
    output = truths / "report"
    assert command(preds, truths / "truth", "--protocol", "corrected", "--output", output) == 0
    printed = capsys.readouterr().out
    assert "protocol corrected" in printed
    assert "MSE x1000" in printed
    result = score_folder(preds, truths / "truth", protocol="corrected")
    assert f"{1000 * result.scores['MSE']:.2f}" in printed
    with open(output / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["SAD"]) for r in rows] == [i.scores["SAD"] for i in result.images]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["scores"] == result.scores
    assert summary["protocol"] == "corrected"
    assert summary["info"] == {"mattes": str(preds), "truth": str(truths / "truth")}
    assert read_image(output / "worst_and_best.png").shape[2] == 3


def test_command_in_processes_with_error_maps(truths, preds, capsys):
    words = [preds, truths / "truth", "--trimaps", truths / "trimaps"]
    assert command(*words, "--output", truths / "one") == 0
    one = capsys.readouterr().out
    assert "unknown pixels of the trimaps" in one
    assert command(*words, "--output", truths / "two", "-j", "2", "--error-maps") == 0
    assert capsys.readouterr().out == one.replace("/one", "/two")
    assert len(list((truths / "two" / "errors").iterdir())) == 5
    assert (truths / "one" / "scores.csv").read_text() == (
        truths / "two" / "scores.csv"
    ).read_text()
    expected = score_folder(*words[:2], truths / "trimaps")
    found = read_result(truths / "two")
    assert found.scores == expected.scores and found.trimap_restricted
    assert command(*words, "--error-maps") == 2
    assert "--error-maps needs --output" in capsys.readouterr().err


def test_file_names_that_are_not_utf8(truths, preds, capsys):
    for folder in (preds, truths / "truth"):
        (folder / "t0.png").rename(folder / os.fsdecode(b"t\xe4.png"))
    preds = preds.rename(truths / os.fsdecode(b"pr\xe4d"))
    assert command(preds, truths / "truth", "--output", truths / "out") == 0
    assert os.fsdecode(b"t\xe4") in [i.name for i in read_result(truths / "out").images]
    assert main(["report", str(truths / "out"), "--output", str(truths / "report")]) == 0
    assert b"t\xe4.png" in (truths / "out" / "scores.csv").read_bytes()


@pytest.mark.parametrize("protocol", ["official", "corrected"])
def test_trimap_values_are_converted_or_refused(truths, preds, protocol, capsys):
    """127, and 1 among 0, 1 and 2, mean unknown; 64 is ambiguous."""
    path = truths / "trimaps" / "t1.png"
    trimap = read_trimap(path)
    words = ["--trimaps", truths / "trimaps", "--protocol", protocol]
    expected = score_folder(preds, truths / "truth", truths / "trimaps", protocol).scores
    unknown, fg = trimap == 128, trimap == 255
    for values in ((0, 127, 255), (0, 1, 2)):
        write_image(path, np.select([unknown, fg], values[1:], 0).astype(np.uint8))
        found = score_folder(preds, truths / "truth", truths / "trimaps", protocol).scores
        assert found == expected
    for values, sentence in (
        ((0, 64, 255), "the value 64"),
        ((0, 1, 0), "only the values 0 and 1"),
    ):
        write_image(path, np.select([unknown, fg], values[1:], 0).astype(np.uint8))
        assert command(preds, truths / "truth", *words) == 2
        assert f"t1.png has {sentence}" in capsys.readouterr().err


def test_masks_of_0_and_1_are_not_scored_as_black(truths, preds, tmp_path, caplog):
    binary = {}
    for folder in (preds, truths / "truth"):
        for path in sorted(folder.iterdir()):
            mask = read_alpha(path) >= 0.5
            for full in (1, 255):
                copy = tmp_path / f"{folder.name}_{full}" / path.name
                binary[folder.name, full] = write_image(copy, mask * np.uint8(full)).parent
    expected = score_folder(binary[preds.name, 255], binary["truth", 255]).scores
    assert 0 < expected["MSE"]
    assert score_folder(binary[preds.name, 1], binary["truth", 1]).scores == expected
    assert "its largest value is 1, so it is read as 0 and 1" in caplog.text


def test_unusable_output_is_reported_first(truths, capsys):
    (truths / "file").touch()
    assert command(truths / "none", truths / "truth", "--output", truths / "file") == 2
    assert "file is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["pred", "truth", "trimaps", "link"])
def test_output_must_not_be_an_input(truths, preds, output, capsys):
    (truths / "link").symlink_to(preds)
    before = sorted(path.name for path in preds.iterdir())
    words = ["--trimaps", truths / "trimaps", "--output", truths / output]
    assert command(preds, truths / "truth", *words) == 2
    assert "read by this command and must not be overwritten" in capsys.readouterr().err
    assert sorted(path.name for path in preds.iterdir()) == before


def test_unicode_spellings_and_other_files(truths, preds, caplog):
    os.rename(preds / "t0.png", preds / "cafe\u0301.Png")
    os.rename(truths / "truth" / "t0.png", truths / "truth" / "caf\xe9.png")
    (preds / "log.txt").touch()
    write_image(preds / "old" / "t1.png", np.zeros((4, 4)))
    result = score_folder(preds, truths / "truth")
    assert {i.name for i in result.images} == {"caf\xe9", "t1", "t2", "t3", "t4"}
    assert "1 file left out, not images: log.txt" in caplog.text
    assert "1 image in 1 sub-folder left out: old (1)" in caplog.text


def test_command_reports_problems(truths, preds, capsys):
    (preds / "t0.png").unlink()
    assert command(preds, truths / "truth", "--output", truths / "report") == 2
    captured = capsys.readouterr()
    assert "t0.png" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (truths / "report").exists()
