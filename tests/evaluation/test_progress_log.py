"""Progress of a test is read back, and only by the same test."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from SDMatte.errors import DataError, OutputError
from SDMatte.evaluation.progress_log import ProgressLog, clear_results
from SDMatte.images.io import write_image
from SDMatte.runtime.files import clear_leftovers
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.results import ImageScore

IDENTITY = {
    "model": "m" * 64,
    "protocol": "official",
    "settings": {"psm": "gauss", "sizes": (3, 5)},
}


def score(log, i, scores=None, matte=True):
    """Return the score of an image, with its matte on disk."""
    if matte:
        write_image(log.matte(f"p{i}"), np.zeros((2, 2)))
    scores = dict.fromkeys(METRICS, i + 1 / 3) if scores is None else scores
    return ImageScore(f"p{i}", 2, 2, scores, "truth.png", str(log.matte(f"p{i}")))


@pytest.fixture
def log(tmp_path):
    log = ProgressLog(tmp_path / "set" / "box", IDENTITY)
    log.begin([score(log, 0)])
    return log


def reopen(log, **changes):
    return ProgressLog(log.folder, {**IDENTITY, **changes})


def test_missing_folder(tmp_path):
    assert ProgressLog(tmp_path / "nowhere", IDENTITY).read() == {}


def test_reads_the_files_of_all_processes(log):
    other = reopen(log)
    log.add(score(log, 1), rank=0)
    other.add(score(log, 2), rank=1)
    (log.folder / "mattes" / ".p3.png.999999999.tmp").write_bytes(b"trunc")
    clear_leftovers.cache_clear()  # as in another process
    found = reopen(log).read()
    assert found == {f"p{i}": score(log, i) for i in range(3)}
    reopen(log).begin(found.values())
    assert sorted(p.name for p in log.folder.iterdir()) == ["mattes", "progress.jsonl"]
    assert reopen(log).read() == found
    assert len(list((log.folder / "mattes").iterdir())) == 3


def test_ignores_truncated_lines(log):
    log.add(score(log, 1))
    log.close()
    part = log.folder / "progress.0.jsonl"
    whole = part.read_text()
    ends = [whole[:-2], whole[:40], "\x00" * 8, "[1]\n", '{"name": "p2"}\n']
    for scores in ({"SAD": 1.0}, 3):
        ends.append(f"{json.dumps({**asdict(score(log, 2)), 'scores': scores})}\n")
    for end in ends:
        part.write_text(whole + end)
        assert list(reopen(log).read()) == ["p0", "p1"]
    part.write_text(whole[:-2])
    assert list(reopen(log).read()) == ["p0"]


def test_later_lines_win(log):
    scores = dict.fromkeys(METRICS, 9.0)
    log.add(score(log, 0, scores=scores))
    assert reopen(log).read()["p0"].scores == scores


def test_images_without_a_whole_matte_are_not_done(log):
    log.add(score(log, 1, matte=False))
    assert list(reopen(log).read()) == ["p0"]
    for content in (log.matte("p0").read_bytes()[:-1], b"", bytes(99)):
        log.matte("p0").write_bytes(content)
        assert reopen(log).read() == {}
    log.matte("p0").unlink()
    assert reopen(log).read() == {}
    log.begin([ImageScore("p3", 2, 2, {}, "truth.png")])  # from a test that writes no mattes
    assert list(reopen(log).read()) == ["p3"]
    reopen(log).add(score(log, 3, matte=False))  # predicted again, with a matte
    assert reopen(log).read() == {}


def test_other_identity_is_refused_with_the_difference(log):
    settings = {"psm": "circle", "sizes": [3, 5]}
    with pytest.raises(DataError) as caught:
        reopen(log, protocol="corrected", settings=settings).read()
    text = str(caught.value)
    assert "with protocol official (now corrected), settings.psm gauss (now circle)." in text
    assert "--restart" in text and str(log.folder) in text and "model" not in text
    with pytest.raises(DataError, match=r"model m{36}\.\.\. \(now n\)"):
        reopen(log, model="n").read()


@pytest.mark.parametrize("first", ["", "{", "[]", '{"identity": 3}'])
def test_unreadable_log_is_refused(log, first):
    (log.folder / "progress.jsonl").write_text(first)
    with pytest.raises(DataError, match=r"with an unreadable progress\.jsonl"):
        reopen(log).read()


@pytest.mark.parametrize("name", ["summary.json", "scores.csv", "mattes"])
def test_results_without_a_log_are_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"without a progress\.jsonl"):
        ProgressLog(tmp_path, IDENTITY).read()


def test_clear_results_keeps_other_files(log):
    log.add(score(log, 1))
    log.close()
    for name in ("summary.md", "summary.json", "scores.csv", "worst_and_best.png", "notes.txt"):
        (log.folder / name).write_text("")
    (log.folder / "errors").mkdir()
    clear_results(log.folder)
    assert [p.name for p in log.folder.iterdir()] == ["notes.txt"]
    clear_results(log.folder / "nowhere")


def test_first_line_holds_the_identity(log):
    first = (log.folder / "progress.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["identity"]["settings"] == {"psm": "gauss", "sizes": [3, 5]}


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    log = ProgressLog(tmp_path / "file" / "box", IDENTITY)
    with pytest.raises(OutputError, match="file"):
        log.begin([])
    with pytest.raises(OutputError, match="Cannot write to .*file"):
        log.add(ImageScore("p", 1, 1, {}, "t"))
