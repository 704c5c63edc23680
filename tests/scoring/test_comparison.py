"""Grouping of runs, cautions, the images shown and the report command."""

from dataclasses import replace

import numpy as np
import pytest

from SDMatte.cli.main import main
from SDMatte.errors import DataError
from SDMatte.images.io import write_image
from SDMatte.scoring.comparison import choose_images, read_runs, write_comparison
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.published import PUBLISHED_NOTE
from SDMatte.scoring.report import write_report
from SDMatte.scoring.results import EvaluationResult, ImageScore


def write_run(folder, sads, model="m", dataset="my set", **options):
    """Write a result with uniform gray mattes; all runs share black truths."""
    path = folder / dataset / "box"
    images = []
    for i, sad in enumerate(sads):
        scores = {**dict.fromkeys(METRICS, 0.5), "SAD": float(sad)}
        alpha = write_image(folder.parent / "truths" / f"p{i}.png", np.zeros((20, 30)))
        write_image(path / "mattes" / f"p{i}.png", np.full((20, 30), sad, np.uint8))
        images.append(ImageScore(f"p{i}", 20, 30, scores, str(alpha)))
    options = {"protocol": "official", "prompt": "box", "prompt_seed": 0, **options}
    result = EvaluationResult(dataset, images=images, model=model, **options)
    write_report(result, path)
    return result


def test_groups_results_by_dataset_prompt_and_protocol(tmp_path):
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


def test_cautions(tmp_path):
    def cautions(**second):
        write_run(tmp_path / "a", [1, 2], model="x")
        write_run(tmp_path / "b", **{"sads": [1, 2], "model": "y", **second})
        return read_runs([("", tmp_path / "a"), ("", tmp_path / "b")])[0].cautions()

    assert cautions() == []
    assert cautions(prompt_seed=1) == ["The runs have different prompts."]
    file = {"prompts sha256": "1"}
    assert cautions(info=file) == ["The runs have different prompts."]
    assert cautions(sads=[1]) == ["The runs have different images."]


def test_published_rows_are_marked(tmp_path):
    result = write_run(tmp_path / "a", [1], dataset="AIM-500")
    paths = write_comparison(read_runs([("", tmp_path / "a")]), tmp_path / "out", 0)
    text = paths[0].read_text()
    assert text.count(f"SDMatte ({PUBLISHED_NOTE})") == 2 and "19.45" in text
    assert "all 500 images" in text and "against" not in text
    images = [replace(result.images[0], name=f"{i}") for i in range(500)]
    write_report(replace(result, images=images), tmp_path / "a" / "AIM-500" / "box")
    paths = write_comparison(read_runs([("mine", tmp_path / "a")]), tmp_path / "out", 0)
    for path in paths:
        text = path.read_text()
        # SDMatte and LiteSDMatte, scores and differences.
        assert text.count(f"SDMatte ({PUBLISHED_NOTE})") == 4
        assert "mine against SDMatte" in text and "19.45" in text
        assert "-94.9" in text  # 1 against 19.45


def test_chooses_hard_images_and_those_that_differ(tmp_path):
    def choose(count):
        comparison = read_runs([("", tmp_path / "a"), ("", tmp_path / "b")])[0]
        rows = choose_images(comparison, count)
        return [[image.scores["SAD"] for image in row.values()] for row in rows]

    write_run(tmp_path / "a", [100, 10, 20, 30, 5], model="x")
    write_run(tmp_path / "b", [100, 10, 80, 31, 5], model="y")
    assert choose(2) == [[100, 100], [20, 80]]
    assert choose(0) == []
    (tmp_path / "b" / "my set" / "box" / "mattes" / "p0.png").unlink()
    assert choose(1) == [[20, 80]]
    for truth in (tmp_path / "truths").iterdir():
        truth.unlink()
    assert choose(2) == []


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a=1", [1, 2], model="x & <y>")
    write_run(tmp_path / "b", [2, 4], model="z")
    assert main(["report", "a=1", "new=b", "--output", "out"]) == 0
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
    ("words", "message"),
    [
        (["nowhere"], "No results in nowhere"),
        (["a", "name=nowhere"], "No results in nowhere"),
    ],
)
def test_error_messages(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", [1])
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    with pytest.raises(DataError):
        read_runs([("", tmp_path / "truths")])
