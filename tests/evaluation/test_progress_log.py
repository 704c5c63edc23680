"""What a test has done is found again, and only by the same test."""

import json

import numpy as np
import pytest

from SDMatte.errors import DataError, OutputError
from SDMatte.evaluation.progress_log import ProgressLog, clear_results
from SDMatte.images.io import write_image
from SDMatte.runtime.files import clear_leftovers
from SDMatte.scoring.results import ImageScore

IDENTITY = {
    "model": "m" * 64,
    "protocol": "official",
    "settings": {"psm": "gauss", "sizes": (3, 5)},
}


def score(progress_log, i, scores=None, matte=True):
    """A picture with its matte on disk."""
    if matte:
        write_image(progress_log.matte(f"p{i}"), np.zeros((2, 2)))
    scores = {"SAD": i + 1 / 3} if scores is None else scores
    return ImageScore(f"p{i}", 2, 2, scores, "truth.png", str(progress_log.matte(f"p{i}")))


@pytest.fixture
def progress_log(tmp_path):
    progress_log = ProgressLog(tmp_path / "set" / "box", IDENTITY)
    progress_log.begin([score(progress_log, 0)])
    return progress_log


def again(progress_log, **changes):
    return ProgressLog(progress_log.folder, {**IDENTITY, **changes})


def test_nothing_is_done_at_first(tmp_path):
    assert ProgressLog(tmp_path / "nowhere", IDENTITY).read() == {}


def test_what_all_processes_did_is_found_again(progress_log):
    other = again(progress_log)
    progress_log.add(score(progress_log, 1), rank=0)
    other.add(score(progress_log, 2), rank=1)
    (progress_log.folder / "mattes" / ".p3.png.999999999.tmp").write_bytes(b"cut sh")
    clear_leftovers.cache_clear()  # as in another process
    found = again(progress_log).read()
    assert found == {f"p{i}": score(progress_log, i) for i in range(3)}
    again(progress_log).begin(found.values())
    assert sorted(p.name for p in progress_log.folder.iterdir()) == ["mattes", "progress.jsonl"]
    assert again(progress_log).read() == found
    assert len(list((progress_log.folder / "mattes").iterdir())) == 3


def test_a_line_that_was_cut_short_is_not_done(progress_log):
    progress_log.add(score(progress_log, 1))
    progress_log.close()
    part = progress_log.folder / "progress.0.jsonl"
    whole = part.read_text()
    for end in (whole[:-2], whole[:40], "\x00" * 8, "[1]\n", '{"name": "p2"}\n'):
        part.write_text(whole + end)
        assert list(again(progress_log).read()) == ["p0", "p1"]
    part.write_text(whole[:-2])
    assert list(again(progress_log).read()) == ["p0"]


def test_a_later_line_counts(progress_log):
    progress_log.add(score(progress_log, 0, scores={"SAD": 9.0}))
    assert again(progress_log).read()["p0"].scores == {"SAD": 9.0}


def test_a_matte_that_is_gone_is_not_done(progress_log):
    progress_log.add(score(progress_log, 1, matte=False))
    assert list(again(progress_log).read()) == ["p0"]
    progress_log.matte("p0").unlink()
    assert again(progress_log).read() == {}
    progress_log.begin([ImageScore("p3", 2, 2, {}, "truth.png")])  # of a test that writes none
    assert list(again(progress_log).read()) == ["p3"]
    again(progress_log).add(
        score(progress_log, 3, matte=False)
    )  # predicted once more, for its matte
    assert again(progress_log).read() == {}


def test_another_identity_is_refused_and_the_difference_named(progress_log):
    with pytest.raises(DataError) as caught:
        again(
            progress_log, protocol="corrected", settings={"psm": "circle", "sizes": [3, 5]}
        ).read()
    text = str(caught.value)
    assert "with protocol official (now corrected), settings.psm gauss (now circle)." in text
    assert "--restart" in text and str(progress_log.folder) in text and "model" not in text
    with pytest.raises(DataError, match=r"model m{36}\.\.\. \(now n\)"):
        again(progress_log, model="n").read()


@pytest.mark.parametrize("first", ["", "{", "[]", '{"identity": 3}'])
def test_an_unreadable_journal_is_refused(progress_log, first):
    (progress_log.folder / "progress.jsonl").write_text(first)
    with pytest.raises(DataError, match="no readable record"):
        again(progress_log).read()


@pytest.mark.parametrize("name", ["summary.json", "scores.csv", "mattes"])
def test_results_without_a_journal_are_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no record of it"):
        ProgressLog(tmp_path, IDENTITY).read()


def test_clearing_leaves_what_is_not_ours(progress_log):
    progress_log.add(score(progress_log, 1))
    progress_log.close()
    for name in ("summary.md", "summary.json", "scores.csv", "worst_and_best.png", "notes.txt"):
        (progress_log.folder / name).write_text("")
    (progress_log.folder / "errors").mkdir()
    clear_results(progress_log.folder)
    assert [p.name for p in progress_log.folder.iterdir()] == ["notes.txt"]
    clear_results(progress_log.folder / "nowhere")


def test_the_first_line_says_what_made_it(progress_log):
    first = (progress_log.folder / "progress.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["identity"]["settings"] == {"psm": "gauss", "sizes": [3, 5]}


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    progress_log = ProgressLog(tmp_path / "file" / "box", IDENTITY)
    with pytest.raises(OutputError, match="file"):
        progress_log.begin([])
    with pytest.raises(OutputError, match="Cannot write to .*file"):
        progress_log.add(ImageScore("p", 1, 1, {}, "t"))
