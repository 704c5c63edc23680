import json
from dataclasses import replace

import numpy as np
import pytest

from SDMatte.errors import DataError
from SDMatte.images.io import read_image, write_image
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.report import (
    PUBLISHED_NOTE,
    contact_sheet,
    difference_table,
    error_map,
    published_comparison,
    published_results,
    score_table,
    summary_markdown,
    write_error_maps,
    write_report,
)
from SDMatte.scoring.results import (
    EvaluationResult,
    ImageScore,
    find_results,
    read_result,
)


def make_result(values=(1.0, 3.0), **options):
    pictures = [
        ImageScore(f"p{i}", 4, 6, dict.fromkeys(METRICS, v), f"truth/p{i}.png")
        for i, v in enumerate(values)
    ]
    return EvaluationResult("AIM-500", "official", pictures, prompt="box", **options)


def test_published_table():
    """A few cells of the paper's tables, and that none is outside of what can be."""
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


def test_mean_and_summary(tmp_path):
    result = make_result(model="m", prompt_seed=7, info={"checkpoint": tmp_path / "a.pth"})
    assert result.key == "AIM-500/box"
    assert result.scores == dict.fromkeys(METRICS, 2.0)
    write_report(result, tmp_path / "new" / "folder")
    summary = json.loads((tmp_path / "new" / "folder" / "summary.json").read_text())
    expected = {"protocol": "official", "prompt": "box", "prompt_seed": 7, "model": "m"}
    assert expected.items() <= summary.items()
    assert summary["num_images"] == 2
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
    plain = cells(score_table({"a": row, "b": {"SAD": 8.45}}))
    assert plain["a"] == ["0.00490", "0.01160", "19.45", "20.63", "12.58"]
    assert plain["b"] == ["", "", "8.45", "", ""]
    shown = score_table({"a": row}, display=True)
    assert cells(shown)["a"][:3] == ["4.90", "11.60", "19.45"]
    assert "MSE x1000" in shown
    assert list(plain) == ["", "a", "b"] and "SAD" in plain[""] and "MSE" in plain[""]


def cells(table):
    """The cells of a Markdown table by their row's label."""
    lines = (line.strip("|").split("|") for line in table.splitlines() if line.startswith("| "))
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def test_comparison_with_the_paper():
    result = make_result([38.9] * 500, model="m")
    text = published_comparison(result)
    rows = cells(text)
    labels = [f"{name} ({PUBLISHED_NOTE})" for name in ("SDMatte", "SDMatte*", "LiteSDMatte")]
    differences = [f"m (this run) against {label}" for label in labels]
    assert list(rows) == ["", "m (this run)", *labels, *differences]
    assert rows[labels[0]][2] == "19.45"
    assert rows[differences[0]][2] == "+100.0 %"  # 38.9 against 19.45
    assert "mean little" not in text
    restricted = make_result([1.0] * 500, trimap_restricted=True)
    assert "mean little" in published_comparison(restricted)
    other = EvaluationResult("my set", "official", make_result().pictures, prompt="box")
    assert published_comparison(other) == ""
    assert PUBLISHED_NOTE not in summary_markdown(other)


def test_a_part_of_a_set_is_not_compared_with_the_paper():
    text = summary_markdown(make_result())
    assert "are of 500 pictures, so they cannot be compared with these of 2" in text
    assert PUBLISHED_NOTE not in text


def test_of_a_set_of_unknown_size_a_comparison_says_so():
    result = replace(make_result(), dataset="RefMatte-RW-100")
    assert PUBLISHED_NOTE in published_comparison(result)
    assert "the paper's numbers are is not known here" in published_comparison(result)


def test_relative_differences():
    first, second = dict.fromkeys(METRICS, 2.0), {**dict.fromkeys(METRICS, 3.0), "Conn": 0.0}
    rows = cells(
        difference_table({"a": first, "b": second}, {"a": first, "c": {"SAD": 4.0}}).markdown()
    )
    assert list(rows) == ["", "a against c", "b against a", "b against c"]
    assert rows["b against a"] == ["+50.0 %"] * 4 + ["-100.0 %"]
    assert rows["b against c"] == ["", "", "-25.0 %", "", ""]
    zero = difference_table({"a": first}, {"c": second}).rows
    assert zero[0][-1] == ""  # nothing is relative to 0


def test_an_error_map_tells_too_much_from_too_little():
    pred, true = np.array([[1.0, 0.0, 0.4]]), np.array([[0.0, 1.0, 0.4]])
    assert error_map(pred, true).tolist() == [[[255, 0, 0], [0, 127, 255], [0, 0, 0]]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_maps_are_written_for_each_picture(tmp_path, num_workers):
    pictures = []
    for i in range(3):
        pred, true = np.full((8, 9), 50 * i, np.uint8), np.full((8, 9), 50, np.uint8)
        files = {"truth": true, "pred": pred}
        paths = [str(write_image(tmp_path / k / f"{i}.png", a)) for k, a in files.items()]
        pictures.append(ImageScore(f"{i}", 8, 9, {}, *paths))
    write_error_maps(pictures, tmp_path / "out", num_workers)
    found = [read_image(tmp_path / "out" / "errors" / f"{i}.png")[0, 0].tolist() for i in range(3)]
    assert found == [[0, 25, 50], [0, 0, 0], [50, 0, 0]]
    (tmp_path / "pred" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png"):
        write_error_maps(pictures, tmp_path / "out", num_workers)


def test_results_come_back(tmp_path):
    result = make_result((1 / 3, 3e-9), model="m, \n|", prompt_seed=7, info={"a": "b"})
    write_report(result, tmp_path / "x")
    again = read_result(tmp_path / "x")
    assert again.pictures == result.pictures and again.scores == result.scores
    assert again.info["a"] == "b" and "numpy" in again.info["versions"]
    again = replace(again, info=result.info)
    assert again == result
    matte = write_image(tmp_path / "x" / "mattes" / "p0.png", np.zeros((4, 6)))
    assert [p.pred_path for p in read_result(tmp_path / "x").pictures] == [str(matte), ""]
    assert find_results(tmp_path) == [tmp_path / "x"] == find_results(tmp_path / "x")


def test_damaged_results_are_named(tmp_path):
    write_report(make_result(), tmp_path)
    scores = (tmp_path / "scores.csv").read_text().splitlines()
    (tmp_path / "scores.csv").write_text("\n".join(scores[:-1]))
    with pytest.raises(DataError, match=r"is of 2 pictures, scores\.csv has 1"):
        read_result(tmp_path)
    (tmp_path / "scores.csv").write_text("\n".join(scores).replace("3.0", "nan"))
    with pytest.raises(DataError, match="a score of p1 is no finite number"):
        read_result(tmp_path)
    (tmp_path / "scores.csv").write_text("name\np0\n")
    with pytest.raises(DataError, match="no readable scores"):
        read_result(tmp_path)
    for content in ("[]", "{", '{"num_images": 1}'):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(DataError, match="no readable scores"):
            read_result(tmp_path)
    (tmp_path / "scores.csv").unlink()
    with pytest.raises(DataError):
        read_result(tmp_path)


def test_contact_sheet_shows_worst_then_best(tmp_path):
    pictures = []
    for i in range(6):
        pred, true = np.full((20, 30), 40 * i, np.uint8), np.zeros((20, 30), np.uint8)
        files = {"truth": true, "pred": pred, "image": np.full((20, 30, 3), 9, np.uint8)}
        paths = [str(write_image(tmp_path / k / f"{i}.png", a)) for k, a in files.items()]
        pictures.append(ImageScore(f"{i}", 20, 30, dict.fromkeys(METRICS, float(i)), *paths))
    result = EvaluationResult("set", "official", pictures)
    sheet = read_image(contact_sheet(result, tmp_path / "s.png", num_each=2, tile=32))
    label, tile = 18, 32
    assert sheet.shape == (4 * (label + tile), 4 * tile, 3)
    centres = sheet[label + tile // 2 :: label + tile, tile // 2 :: tile, 0]
    assert centres[:, 2].tolist() == [200, 160, 40, 0]  # predictions
    assert centres[:, 3].tolist() == [200, 160, 40, 0]  # errors
    assert centres[:, 0].tolist() == [9] * 4
    few = read_image(contact_sheet(result, tmp_path / "s.png", num_each=4, tile=32))
    assert len(few) == 6 * (label + tile)
    bare = replace(result, pictures=[replace(p, image_path="") for p in pictures])
    without = read_image(contact_sheet(bare, tmp_path / "s.png", num_each=2, tile=32))
    rows = np.vsplit(without, 4), np.vsplit(sheet, 4)
    for row, full in zip(*rows, strict=True):  # below the labels all but the first column
        assert np.array_equal(row[label:], full[label:, tile:])


def test_contact_sheet_needs_mattes(tmp_path):
    with pytest.raises(DataError, match="p1 was not written"):
        contact_sheet(make_result(), tmp_path / "s.png")
