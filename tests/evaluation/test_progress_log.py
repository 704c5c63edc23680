"""What a test has done is found again, and only by the same test."""

import json

import numpy as np
import pytest

from SDMatte.errors import DataError, OutputError
from SDMatte.evaluation.progress_log import Journal, clear_results
from SDMatte.images.io import write_image
from SDMatte.runtime.files import clear_leftovers
from SDMatte.scoring.results import PictureScore

IDENTITY = {
    "model": "m" * 64,
    "protocol": "official",
    "settings": {"psm": "gauss", "sizes": (3, 5)},
}


def score(journal, i, scores=None, matte=True):
    """A picture with its matte on disk."""
    if matte:
        write_image(journal.matte(f"p{i}"), np.zeros((2, 2)))
    scores = {"SAD": i + 1 / 3} if scores is None else scores
    return PictureScore(f"p{i}", 2, 2, scores, "truth.png", str(journal.matte(f"p{i}")))


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "set" / "box", IDENTITY)
    journal.begin([score(journal, 0)])
    return journal


def again(journal, **changes):
    return Journal(journal.folder, {**IDENTITY, **changes})


def test_nothing_is_done_at_first(tmp_path):
    assert Journal(tmp_path / "nowhere", IDENTITY).read() == {}


def test_what_all_processes_did_is_found_again(journal):
    other = again(journal)
    journal.add(score(journal, 1), rank=0)
    other.add(score(journal, 2), rank=1)
    (journal.folder / "mattes" / ".p3.png.999999999.tmp").write_bytes(b"cut sh")
    clear_leftovers.cache_clear()  # as in another process
    found = again(journal).read()
    assert found == {f"p{i}": score(journal, i) for i in range(3)}
    again(journal).begin(found.values())
    assert sorted(p.name for p in journal.folder.iterdir()) == ["mattes", "progress.jsonl"]
    assert again(journal).read() == found
    assert len(list((journal.folder / "mattes").iterdir())) == 3


def test_a_line_that_was_cut_short_is_not_done(journal):
    journal.add(score(journal, 1))
    journal.close()
    part = journal.folder / "progress.0.jsonl"
    whole = part.read_text()
    for end in (whole[:-2], whole[:40], "\x00" * 8, "[1]\n", '{"name": "p2"}\n'):
        part.write_text(whole + end)
        assert list(again(journal).read()) == ["p0", "p1"]
    part.write_text(whole[:-2])
    assert list(again(journal).read()) == ["p0"]


def test_a_later_line_counts(journal):
    journal.add(score(journal, 0, scores={"SAD": 9.0}))
    assert again(journal).read()["p0"].scores == {"SAD": 9.0}


def test_a_matte_that_is_gone_is_not_done(journal):
    journal.add(score(journal, 1, matte=False))
    assert list(again(journal).read()) == ["p0"]
    journal.matte("p0").unlink()
    assert again(journal).read() == {}
    journal.begin([PictureScore("p3", 2, 2, {}, "truth.png")])  # of a test that writes none
    assert list(again(journal).read()) == ["p3"]
    again(journal).add(score(journal, 3, matte=False))  # predicted once more, for its matte
    assert again(journal).read() == {}


def test_another_identity_is_refused_and_the_difference_named(journal):
    with pytest.raises(DataError) as caught:
        again(journal, protocol="corrected", settings={"psm": "circle", "sizes": [3, 5]}).read()
    text = str(caught.value)
    assert "with protocol official (now corrected), settings.psm gauss (now circle)." in text
    assert "--restart" in text and str(journal.folder) in text and "model" not in text
    with pytest.raises(DataError, match=r"model m{36}\.\.\. \(now n\)"):
        again(journal, model="n").read()


@pytest.mark.parametrize("first", ["", "{", "[]", '{"identity": 3}'])
def test_an_unreadable_journal_is_refused(journal, first):
    (journal.folder / "progress.jsonl").write_text(first)
    with pytest.raises(DataError, match="no readable record"):
        again(journal).read()


@pytest.mark.parametrize("name", ["summary.json", "scores.csv", "mattes"])
def test_results_without_a_journal_are_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no record of it"):
        Journal(tmp_path, IDENTITY).read()


def test_clearing_leaves_what_is_not_ours(journal):
    journal.add(score(journal, 1))
    journal.close()
    for name in ("summary.md", "summary.json", "scores.csv", "worst_and_best.png", "notes.txt"):
        (journal.folder / name).write_text("")
    (journal.folder / "errors").mkdir()
    clear_results(journal.folder)
    assert [p.name for p in journal.folder.iterdir()] == ["notes.txt"]
    clear_results(journal.folder / "nowhere")


def test_the_first_line_says_what_made_it(journal):
    first = (journal.folder / "progress.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["identity"]["settings"] == {"psm": "gauss", "sizes": [3, 5]}


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "box", IDENTITY)
    with pytest.raises(OutputError, match="file"):
        journal.begin([])
    with pytest.raises(OutputError, match="Cannot write to .*file"):
        journal.add(PictureScore("p", 1, 1, {}, "t"))
