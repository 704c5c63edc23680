"""Summaries, and the published results beside them."""

import json
from dataclasses import replace

import pytest

from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.published import PUBLISHED_NOTE, published_results
from SDMatte.scoring.report import summarize, write_report
from SDMatte.scoring.results import EvaluationResult, ImageScore
from SDMatte.scoring.tables import Table, difference_rows, score_table


def make_result(values=(1.0, 3.0), **options):
    images = [
        ImageScore(f"p{i}", 4, 6, dict.fromkeys(METRICS, v), f"truth/p{i}.png")
        for i, v in enumerate(values)
    ]
    return EvaluationResult("AIM-500", "official", images, prompt="box", **options)


def cells(table):
    """Return the cells of a Markdown table by the label of their row."""
    lines = (line.strip("|").split("|") for line in table.splitlines() if line.startswith("| "))
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def test_published_results():
    rows = {(r["dataset"], r["model"], r["prompt"]): r for r in published_results()["results"]}
    assert len(rows) == 22
    assert rows["AIM-500", "SDMatte", "box"]["SAD"] == 19.45
    assert rows["P3M-500-NP", "SDMatte*", "box"]["MSE"] == 0.0016
    assert rows["AM-2K", "LiteSDMatte", "mask"] == {
        "dataset": "AM-2K", "model": "LiteSDMatte", "prompt": "mask", "SAD": 8.45
    }  # fmt: skip
    for row in rows.values():
        assert row["prompt"] in ("point", "box", "mask")
        assert all(0 < row[k] < (0.1 if k in ("MSE", "MAD") else 100) for k in METRICS if k in row)


def test_write_report(tmp_path):
    result = make_result(model="m", prompt_seed=7, info={"checkpoint": tmp_path / "a.pth"})
    folder = tmp_path / "new" / "folder"
    write_report(result, folder)
    summary = json.loads((folder / "summary.json").read_text())
    expected = {"protocol": "official", "prompt": "box", "prompt_seed": 7, "model": "m"}
    assert expected.items() <= summary.items()
    assert summary["num_images"] == 2 and summary["scores"] == dict.fromkeys(METRICS, 2.0)
    assert {"torch", "numpy", "opencv", "python", "SDMatte"} <= summary["versions"].keys()
    markdown = (folder / "summary.md").read_text()
    for part in ("official", "prompt seed: 7", "model: m", "a.pth", "numpy"):
        assert part in markdown
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["scores.csv", "summary.json", "summary.md"]


def test_units_of_tables():
    row = dict(zip(METRICS, (0.0049, 0.0116, 19.45, 20.63, 12.58), strict=True))
    plain = cells(score_table({"a": row, "b": {"SAD": 8.45}}))
    assert plain["a"] == ["0.00490", "0.01160", "19.45", "20.63", "12.58"]
    assert plain["b"] == ["", "", "8.45", "", ""]
    assert list(plain) == ["", "a", "b"] and plain[""] == list(METRICS)
    shown = cells(score_table({"a": row}, display=True))
    assert shown["a"] == ["4.90", "11.60", "19.45", "20.63", "12.58"]
    assert shown[""] == ["MSE x1000", "MAD x1000", "SAD", "Grad", "Conn"]


def test_relative_differences():
    first, second = dict.fromkeys(METRICS, 2.0), {**dict.fromkeys(METRICS, 3.0), "Conn": 0.0}
    found = difference_rows({"a": first, "b": second}, {"a": first, "c": {"SAD": 4.0}})
    rows = cells(Table(["", *METRICS], found).format())
    assert list(rows) == ["", "a against c", "b against a", "b against c"]
    assert rows["b against a"] == ["+50.0 %"] * 4 + ["-100.0 %"]
    assert rows["b against c"] == ["", "", "-25.0 %", "", ""]
    assert difference_rows({"a": first}, {"c": second})[0][-1] == ""  # the reference is 0


def test_summary_compares_with_the_paper():
    text = summarize(make_result([38.9] * 500, model="m"))
    rows = cells(text)
    labels = [f"{name} ({PUBLISHED_NOTE})" for name in ("SDMatte", "SDMatte*", "LiteSDMatte")]
    differences = [f"m (this run) against {label}" for label in labels]
    assert list(rows) == ["", "m", "m (this run)", *labels, *differences]
    assert rows[labels[0]][2] == "19.45"
    assert rows[differences[0]][2] == "+100.0 %"  # 38.9 against 19.45
    assert "mean little" not in text
    assert "mean little" in summarize(make_result([1.0] * 500, trimap_restricted=True))


@pytest.mark.parametrize(
    ("dataset", "compared", "caution"),
    [
        ("AIM-500", False, "are for all 500 images of AIM-500 and are not comparable with these"),
        ("RefMatte-RW-100", True, "behind the paper's scores is unknown"),
        ("my set", False, ""),
    ],
)
def test_comparison_depends_on_the_number_of_images(dataset, compared, caution):
    text = summarize(replace(make_result(), dataset=dataset))
    assert (PUBLISHED_NOTE in text) is compared
    assert caution in text and ("paper" in text) is bool(caution)
