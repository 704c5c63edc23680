"""Results and their files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from SDMatte.errors import DataError
from SDMatte.images.io import write_image
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.results import (
    EvaluationResult,
    ImageScore,
    find_results,
    read_result,
    write_result,
)


@pytest.fixture
def result():
    images = [
        ImageScore(f"p{i}", 4, 6, dict.fromkeys(METRICS, v), f"truth/p{i}.png")
        for i, v in enumerate((1.0, 3.0))
    ]
    info = {"a": "b"}
    return EvaluationResult("AIM-500", "official", images, prompt="box", model="m", info=info)


def test_means(result):
    assert result.key == "AIM-500/box"
    assert result.scores == dict.fromkeys(METRICS, 2.0)


def test_refuses_no_images_and_repeated_names(result):
    with pytest.raises(DataError, match="no images"):
        replace(result, images=())
    with pytest.raises(DataError, match="several images are named p0"):
        replace(result, images=result.images[:1] * 2)


def test_round_trip(tmp_path, result):
    images = [
        replace(i, scores=dict.fromkeys(METRICS, v))
        for i, v in zip(result.images, (1 / 3, 3e-9), strict=True)
    ]
    result = replace(result, images=images, model="m, \n|", prompt_seed=7)
    write_result(result, tmp_path / "x")
    found = read_result(tmp_path / "x")
    assert found.info["a"] == "b" and "numpy" in found.info["versions"]
    assert replace(found, info=result.info) == result
    matte = write_image(tmp_path / "x" / "mattes" / "p0.png", np.zeros((4, 6)))
    assert [i.pred_path for i in read_result(tmp_path / "x").images] == [str(matte), ""]
    assert find_results(tmp_path) == [tmp_path / "x"] == find_results(tmp_path / "x")


def test_reads_summaries_of_earlier_versions(tmp_path, result):
    write_result(result, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary["num_pictures"] = summary.pop("num_images")
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert read_result(tmp_path).scores == result.scores


def test_damaged_files(tmp_path, result):
    write_result(result, tmp_path)
    scores = (tmp_path / "scores.csv").read_text().splitlines()
    (tmp_path / "scores.csv").write_text("\n".join(scores[:-1]))
    with pytest.raises(DataError, match=r"lists 2 images, scores\.csv has 1"):
        read_result(tmp_path)
    (tmp_path / "scores.csv").write_text("\n".join(scores).replace("3.0", "nan"))
    with pytest.raises(DataError, match="a score of p1 is not finite"):
        read_result(tmp_path)
    for content in ("", f"{scores[0]}\n"):
        (tmp_path / "scores.csv").write_text(content)
        with pytest.raises(DataError, match=r"lists 2 images, scores\.csv has 0"):
            read_result(tmp_path)
    for content in ("name\np0\n", "\n".join(scores)[:-40]):
        (tmp_path / "scores.csv").write_text(content)
        with pytest.raises(DataError, match=r"/scores\.csv is damaged, or was not written by"):
            read_result(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name, value in (("prompt", ["a"]), ("model", {"a": 1}), ("trimap_restricted", None)):
        (tmp_path / "summary.json").write_text(json.dumps({**summary, name: value}))
        with pytest.raises(DataError, match=rf"/summary\.json: {name} has the wrong type; got"):
            read_result(tmp_path)
    for content in (b"[]", b"{", b'{"num_images": 1}', bytes(range(256))):
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(DataError, match=r"/summary\.json is damaged, or was not written by"):
            read_result(tmp_path)
    (tmp_path / "scores.csv").unlink()
    with pytest.raises(DataError):
        read_result(tmp_path)
