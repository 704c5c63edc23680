import json

import numpy as np
import pytest

from SDMatte.errors import DataError
from SDMatte.evaluation.metrics import METRICS
from SDMatte.evaluation.report import (
    PUBLISHED_NOTE,
    EvaluationResult,
    PictureScore,
    contact_sheet,
    published_comparison,
    published_results,
    score_table,
    summary_markdown,
    write_report,
)
from SDMatte.image_io import read_image, write_image


def make_result(values=(1.0, 3.0), **options):
    pictures = [
        PictureScore(f"p{i}", 4, 6, dict.fromkeys(METRICS, v), f"truth/p{i}.png")
        for i, v in enumerate(values)
    ]
    return EvaluationResult("AIM-500", "official", pictures, prompt="box", **options)


def test_published_table():
    """A few cells of the paper's tables, and that none is outside of what can be."""
    rows = {(r["dataset"], r["model"], r["prompt"]): r for r in published_results()}
    assert len(rows) == 22
    assert rows["AIM-500", "SDMatte", "box"]["SAD"] == 19.45
    assert rows["P3M-500-NP", "SDMatte*", "box"]["MSE"] == 0.0016
    assert rows["AM-2K", "LiteSDMatte", "mask"] == {
        "dataset": "AM-2K", "model": "LiteSDMatte", "prompt": "mask", "SAD": 8.45
    }  # fmt: skip
    for row in rows.values():
        assert row["prompt"] in ("point", "box", "mask")
        assert all(0 < row[k] < (0.1 if k in ("MSE", "MAD") else 100) for k in METRICS if k in row)


def test_mean_and_summary(tmp_path):
    result = make_result(model="m", prompt_seed=7, info={"checkpoint": tmp_path / "a.pth"})
    assert result.key == "AIM-500/box"
    assert result.scores == dict.fromkeys(METRICS, 2.0)
    write_report(result, tmp_path / "new" / "folder")
    summary = json.loads((tmp_path / "new" / "folder" / "summary.json").read_text())
    expected = {"protocol": "official", "prompt": "box", "prompt_seed": 7, "model": "m"}
    assert expected.items() <= summary.items()
    assert summary["num_pictures"] == 2
    assert {"torch", "numpy", "opencv", "python", "SDMatte"} <= summary["versions"].keys()
    markdown = (tmp_path / "new" / "folder" / "summary.md").read_text()
    for part in ("official", "prompt seed: 7", "model: m", "a.pth", "numpy"):
        assert part in markdown
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "scores.csv",
        "summary.json",
        "summary.md",
    ]


def test_nothing_and_doubles_are_refused():
    with pytest.raises(DataError, match="no picture"):
        make_result(())
    twice = make_result().pictures[0]
    with pytest.raises(DataError, match="p0"):
        EvaluationResult("set", "official", [twice, twice])


def test_table_units():
    row = dict(zip(METRICS, (0.0049, 0.0116, 19.45, 20.63, 12.58), strict=True))
    plain = score_table({"a": row, "b": {"SAD": 8.45}})
    assert "| a | 0.00490 | 0.01160 | 19.45 | 20.63 | 12.58 |" in plain
    assert "| b |  |  | 8.45 |  |  |" in plain
    shown = score_table({"a": row}, display=True)
    assert "| a | 4.90 | 11.60 | 19.45 |" in shown
    assert "MSE x1000" in shown
    assert "x1000" not in plain


def test_comparison_with_the_paper():
    text = published_comparison(make_result((38.9, 38.9)))
    rows = [r for r in text.splitlines() if r.startswith("|") and "SDMatte" in r]
    assert len(rows) == 3
    assert all(PUBLISHED_NOTE in r for r in rows)
    assert "against SDMatte (published, not measured here)" in text
    assert "SAD +100.0 %" in text  # 38.9 against 19.45
    assert "mean little" not in text
    assert "mean little" in published_comparison(make_result(trimap_restricted=True))
    other = EvaluationResult("my set", "official", make_result().pictures, prompt="box")
    assert published_comparison(other) == ""
    assert PUBLISHED_NOTE not in summary_markdown(other)


def test_contact_sheet_shows_worst_then_best(tmp_path):
    pictures = []
    for i in range(6):
        pred, true = np.full((20, 30), 40 * i, np.uint8), np.zeros((20, 30), np.uint8)
        files = {"truth": true, "pred": pred, "image": np.full((20, 30, 3), 9, np.uint8)}
        paths = [str(write_image(tmp_path / k / f"{i}.png", a)) for k, a in files.items()]
        pictures.append(PictureScore(f"{i}", 20, 30, dict.fromkeys(METRICS, float(i)), *paths))
    result = EvaluationResult("set", "official", pictures)
    sheet = read_image(contact_sheet(result, tmp_path / "s.png", num_each=2, tile=32))
    label, tile = 18, 32
    assert sheet.shape == (4 * (label + tile), 4 * tile, 3)
    first_pixels = sheet[label :: label + tile]
    assert first_pixels[:, 2 * tile, 0].tolist() == [200, 160, 40, 0]  # predictions
    assert first_pixels[:, 3 * tile, 0].tolist() == [200, 160, 40, 0]  # errors
    assert first_pixels[:, 0, 0].tolist() == [9] * 4
    few = read_image(contact_sheet(result, tmp_path / "s.png", num_each=4, tile=32))
    assert len(few) == 6 * (label + tile)


def test_contact_sheet_needs_mattes(tmp_path):
    with pytest.raises(DataError, match="not written"):
        contact_sheet(make_result(), tmp_path / "s.png")
