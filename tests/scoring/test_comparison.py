"""Runs side by side: what belongs together, what is said of it, and the report's three files."""

from dataclasses import replace

import numpy as np
import pytest

from SDMatte.cli.main import main
from SDMatte.errors import DataError
from SDMatte.images.io import read_image, write_image
from SDMatte.scoring.comparison import draw_sheet, read_runs, write_comparison
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.report import PUBLISHED_NOTE, write_report
from SDMatte.scoring.results import EvaluationResult, ImageScore


def write_run(folder, sads, model="m", dataset="my set", truths=None, **options):
    """A result with mattes of one gray; the truths, the same for all runs, are black."""
    truths = truths or folder.parent / "truths"
    path = folder / dataset / "box"
    pictures = []
    for i, sad in enumerate(sads):
        scores = {**dict.fromkeys(METRICS, 0.5), "SAD": float(sad)}
        alpha = write_image(truths / f"p{i}.png", np.zeros((20, 30)))
        write_image(path / "mattes" / f"p{i}.png", np.full((20, 30), sad, np.uint8))
        pictures.append(ImageScore(f"p{i}", 20, 30, scores, str(alpha)))
    options = {"protocol": "official", "prompt": "box", "prompt_seed": 0, **options}
    result = EvaluationResult(dataset, pictures=pictures, model=model, **options)
    write_report(result, path)
    return result


def test_results_are_put_together_by_what_they_measure(tmp_path):
    write_run(tmp_path / "a", [1, 2], model="x")
    write_run(tmp_path / "b", [3, 4], model="y")
    write_run(tmp_path / "c", [3, 4], model="x", protocol="corrected")
    write_run(tmp_path / "d" / "1", [3, 4], model="x")
    write_run(tmp_path / "d" / "2", [3, 4], model="y", dataset="other")
    names = [("", "a"), ("new", "b"), ("", "c"), ("both", "d")]
    comparisons = read_runs([(name, tmp_path / folder) for name, folder in names])
    assert [list(c.results) for c in comparisons] == [["x", "new", "both, x"], ["x"], ["both, y"]]
    assert [c.title for c in comparisons] == ["my set, box", "my set, box", "other, box"]
    assert comparisons[1].first.protocol == "corrected"
    twice = read_runs([("", tmp_path / "a"), ("", tmp_path / "a")])
    assert list(twice[0].results) == ["x", f"x ({tmp_path / 'a' / 'my set' / 'box'})"]


def test_what_cannot_be_compared_is_said(tmp_path):
    def cautions(**second):
        write_run(tmp_path / "a", [1, 2], model="x")
        write_run(tmp_path / "b", **{"sads": [1, 2], "model": "y", **second})
        return read_runs([("", tmp_path / "a"), ("", tmp_path / "b")])[0].cautions()

    assert cautions() == []
    assert cautions(prompt_seed=1) == ["The runs did not see the same prompts."]
    file = {"prompts sha256": "1"}
    assert cautions(info=file) == ["The runs did not see the same prompts."]
    assert cautions(sads=[1]) == ["The runs are not of the same pictures."]


def test_the_published_rows_are_marked(tmp_path):
    result = write_run(tmp_path / "a", [1], dataset="AIM-500")
    paths = write_comparison(read_runs([("", tmp_path / "a")]), tmp_path / "out", 0)
    text = paths[0].read_text()
    assert text.count(f"SDMatte ({PUBLISHED_NOTE})") == 2 and "19.45" in text
    assert "are of 500 pictures" in text and "against" not in text
    pictures = [replace(result.pictures[0], name=f"{i}") for i in range(500)]
    write_report(replace(result, pictures=pictures), tmp_path / "a" / "AIM-500" / "box")
    paths = write_comparison(read_runs([("mine", tmp_path / "a")]), tmp_path / "out", 0)
    for path in paths:
        text = path.read_text()
        # SDMatte and LiteSDMatte, scores and differences.
        assert text.count(f"SDMatte ({PUBLISHED_NOTE})") == 4
        assert "mine against SDMatte" in text and "19.45" in text
        assert "-94.9" in text  # 1 against 19.45


def test_the_sheet_shows_hard_pictures_and_those_that_divide(tmp_path):
    write_run(tmp_path / "a", [100, 10, 20, 30, 5], model="x")
    write_run(tmp_path / "b", [100, 10, 80, 31, 5], model="y")
    comparison = read_runs([("", tmp_path / "a"), ("", tmp_path / "b")])[0]
    assert draw_sheet(comparison, tmp_path / "s.png", 2, tile=32)
    sheet = read_image(tmp_path / "s.png")
    label, tile = 18, 32
    assert sheet.shape == (2 * (label + tile), 4 * tile, 3)
    centres = sheet[label + tile // 2 :: label + tile, tile // 2 :: tile, 0]
    assert centres[:, 2:].tolist() == [[100, 100], [20, 80]]
    assert centres[:, 1].tolist() == [0, 0]
    (tmp_path / "b" / "my set" / "box" / "mattes" / "p0.png").unlink()
    comparison = read_runs([("", tmp_path / "a"), ("", tmp_path / "b")])[0]
    assert draw_sheet(comparison, tmp_path / "s.png", 1, tile=32)
    assert read_image(tmp_path / "s.png")[label + tile // 2, 3 * tile - tile // 2, 0] == 20
    for truth in (tmp_path / "truths").iterdir():
        truth.unlink()
    assert not draw_sheet(comparison, tmp_path / "none.png", 2)
    assert not (tmp_path / "none.png").exists()


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a=1", [1, 2], model="x & <y>")
    write_run(tmp_path / "b", [2, 4], model="z")
    assert main(["report", "a=1", "new=b", "--output", "out", "--pictures", "1"]) == 0
    printed = capsys.readouterr().out
    assert "new against x & " in printed and "+100.0 %" in printed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "01_my_set_box.jpg", "report.html", "report.md", "report.tex"
    ]  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert "x &amp; &lt;y&gt;" in page and "<y>" not in page and 'src="data:image/jpeg' in page
    assert "{01_my_set_box.jpg}" in (tmp_path / "out" / "report.tex").read_text()
    assert "](01_my_set_box.jpg)" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "There are no results in nowhere"),
        (["a", "name=nowhere"], "There are no results in nowhere"),
        (["a", "--pictures", "-1"], "There cannot be -1 pictures."),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", [1])
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    with pytest.raises(DataError):
        read_runs([("", tmp_path / "truths")])
