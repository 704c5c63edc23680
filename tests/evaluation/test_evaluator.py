"""The evaluator: scores, files, problems, resuming and two processes."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluated_discs import evaluate, make_batches, make_test, run_rank, run_second_rank

from SDMatte.errors import ConfigError, DataError
from SDMatte.evaluation.evaluator import MatteEvaluator
from SDMatte.evaluation.progress_log import ProgressLog
from SDMatte.scoring import score_folder
from SDMatte.scoring.metrics import METRICS


@pytest.mark.parametrize("use_trimap", [False, True])
def test_equals_scoring_the_written_files(truths, use_trimap):
    output = truths / "out"
    evaluator, found = evaluate(truths, output=output, use_trimap=use_trimap)
    trimaps = truths / "trimaps" if use_trimap else None
    expected = score_folder(output / "mattes", truths / "truth", trimaps)
    assert list(found) == ["discs/box"]
    # Equal: the official scores are computed from the 8 bits of the files.
    assert found["discs/box"] == expected.scores
    assert list(found["discs/box"]) == list(METRICS)
    assert [i.scores for i in evaluator.result.images] == [i.scores for i in expected.images]
    assert sorted(os.listdir(output / "mattes")) == [f"t{i}.png" for i in range(5)]
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["model"], summary["prompt_seed"], summary["prompt"]) == ("toy", 3, "box")
    assert summary["trimap_restricted"] is use_trimap
    assert (output / "worst_and_best.png").exists()


def test_corrected_scores_before_rounding(truths):
    output = truths / "out"
    _, corrected = evaluate(truths, protocol="corrected", output=output)
    files = score_folder(output / "mattes", truths / "truth", protocol="corrected").scores
    _, official = evaluate(truths)
    assert corrected["discs/box"] != files
    assert corrected["discs/box"] == pytest.approx(files, rel=0.02)
    assert corrected["discs/box"]["Conn"] != pytest.approx(official["discs/box"]["Conn"], rel=0.02)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_do_not_change_the_scores(truths, num_workers):
    assert evaluate(truths, num_workers=num_workers)[1] == evaluate(truths)[1]


def test_keeps_no_arrays(truths):
    evaluator, _ = evaluate(truths)
    kept = [value for image in evaluator.result.images for value in vars(image).values()]
    assert len(kept) >= 5 * 7
    assert not any(isinstance(value, np.ndarray) for value in kept)


def test_reset(truths):
    evaluator, first = evaluate(truths)
    evaluator.reset()
    for batch, preds in make_batches(truths, range(5)):
        evaluator.process(batch, preds)
    assert evaluator.evaluate() == first


def test_works_in_the_loop_of_detectron2(truths):
    from detectron2.evaluation import inference_on_dataset, print_csv_format
    from detectron2.evaluation.testing import flatten_results_dict

    batches = list(make_batches(truths, range(5)))
    answers = iter([preds for _, preds in batches])
    results = inference_on_dataset(
        lambda batch: next(answers), [b for b, _ in batches], MatteEvaluator(make_test(truths))
    )
    print_csv_format(results)
    assert results == evaluate(truths)[1]
    assert flatten_results_dict(results).keys() == {f"discs/box/{k}" for k in METRICS}


def test_lists_all_problems(truths):
    evaluator = MatteEvaluator(make_test(truths))
    batches = list(make_batches(truths, range(4)))
    batches[0][0]["hw"][0] = torch.tensor([7, 7])
    batches[1][1][0] = torch.nan
    (truths / "truth" / "t3.png").write_bytes(b"")
    for batch, preds in batches:
        evaluator.process(batch, preds)
    with pytest.raises(DataError) as caught:
        evaluator.evaluate()
    text = str(caught.value)
    for part in (
        "t0.png: The prediction is 7x7",
        "t2.png: A prediction has NaN",
        "t3.png: Cannot read",
        "4 images were predicted, but the data set has 5",
    ):
        assert part in text
    assert len(text.splitlines()) == 5


def test_requires_trimaps_only_if_used(truths):
    with pytest.raises(DataError, match="No trimap"):
        evaluate(truths, trimaps=False, use_trimap=True)
    evaluate(truths, trimaps=False)


def test_wrong_arguments(truths):
    with pytest.raises(ConfigError, match="official, corrected"):
        MatteEvaluator(make_test(truths, protocol="x"))
    batch, preds = next(make_batches(truths, range(2)))
    for bad in (preds[:1], preds[:, 0], preds.repeat(1, 2, 1, 1)):
        with pytest.raises(ValueError, match=r"\[2, 1, h, w\]"):
            MatteEvaluator(make_test(truths)).process(batch, bad)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes(truths):
    """Scores are gathered; a problem in one process raises the same error in both."""
    whole = evaluate(truths)[1]
    process = torch.multiprocessing.get_context("spawn").Process(
        target=run_second_rank, args=(truths,), daemon=True
    )
    process.start()
    first = run_rank(0, truths)
    process.join(timeout=120)
    second = json.loads((truths / "rank1.json").read_text())
    assert first[0] == whole == first.pop()  # the last one was resumed
    assert second[0] == {} == second.pop()
    for results in (first, second):
        assert "discs/box: several images are named t2." in results[1]
        assert "3 images were predicted, but the data set has 5" in results[2]
    assert first[1:] == second[1:]
    assert sorted(os.listdir(truths / "out0" / "mattes")) == [f"t{i}.png" for i in range(5)]
    done = ProgressLog(truths / "out0", {"model": "discs"}).read()
    images = evaluate(truths)[0].result.images
    assert {name: i.scores for name, i in done.items()} == {i.name: i.scores for i in images}


def test_resumes(truths):
    progress_log = ProgressLog(truths / "out", {"model": "discs"})
    progress_log.begin([])
    options = {"output": truths / "out", "progress_log": progress_log}
    with pytest.raises(DataError, match="3 images were predicted"):
        evaluate(truths, range(3), **options)
    done = ProgressLog(truths / "out", {"model": "discs"}).read()
    assert sorted(done) == ["t0", "t1", "t2"]
    evaluator, found = evaluate(truths, [3, 4], done=done.values(), **options)
    whole, expected = evaluate(truths)
    assert found == expected
    assert [i.scores for i in evaluator.result.images] == [i.scores for i in whole.result.images]
    # An image that is done may share a batch with a missing one; it is not scored again.
    done["t2"] = replace(done["t2"], scores={**done["t2"].scores, "SAD": 7.0})
    evaluator, _ = evaluate(truths, [2, 3, 4], done=done.values(), **options)
    assert evaluator.result.images[2].scores["SAD"] == 7.0


def test_mattes_without_scores(truths):
    progress_log = ProgressLog(truths / "out", {"model": "discs"})
    progress_log.begin([])
    options = {"output": truths / "out", "progress_log": progress_log}
    assert evaluate(truths, with_metrics=False, **options)[1] == {}
    assert sorted(os.listdir(truths / "out")) == ["mattes", "progress.jsonl"]
    done = progress_log.read().values()
    assert len(done) == 5 and not any(image.scores for image in done)
    assert evaluate(truths, [], done=done, **options)[1] == evaluate(truths)[1]
    (truths / "out" / "mattes" / "t1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"mattes/t1\.png: Cannot read"):
        evaluate(truths, [], done=done, **options)
