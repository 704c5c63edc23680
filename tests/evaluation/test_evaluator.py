import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluated_discs import evaluate, make_batches, run_rank, run_second_rank

from SDMatte.errors import ConfigError, DataError
from SDMatte.evaluation.evaluator import MatteEvaluator
from SDMatte.evaluation.progress_log import ProgressLog
from SDMatte.images.io import read_alpha, write_image
from SDMatte.scoring import score_folder
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.workers import Target


@pytest.mark.parametrize("use_trimap", [False, True])
def test_same_as_scoring_its_files(truths, use_trimap):
    output = truths / "out"
    evaluator, found = evaluate(
        truths, output_dir=output, use_trimap=use_trimap, num_images=5, model="toy", prompt_seed=3
    )
    trimaps = truths / "trimaps" if use_trimap else None
    expected = score_folder(output / "mattes", truths / "truth", trimaps)
    assert list(found) == ["discs/box"]
    # Equal: officially the scores are those of the 8 bits that the files hold.
    assert found["discs/box"] == expected.scores
    assert list(found["discs/box"]) == list(METRICS)
    assert [p.scores for p in evaluator.result.pictures] == [p.scores for p in expected.pictures]
    assert sorted(os.listdir(output / "mattes")) == [f"t{i}.png" for i in range(5)]
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["model"], summary["prompt_seed"], summary["prompt"]) == ("toy", 3, "box")
    assert summary["trimap_restricted"] is use_trimap
    assert (output / "worst_and_best.png").exists()


def test_corrected_scores_before_rounding(truths):
    output = truths / "out"
    _, corrected = evaluate(truths, protocol="corrected", output_dir=output)
    files = score_folder(output / "mattes", truths / "truth", protocol="corrected").scores
    _, official = evaluate(truths)
    assert corrected["discs/box"] != files
    assert corrected["discs/box"] == pytest.approx(files, rel=0.02)
    assert corrected["discs/box"]["Conn"] != pytest.approx(official["discs/box"]["Conn"], rel=0.02)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(truths, num_workers):
    assert evaluate(truths, num_workers=num_workers)[1] == evaluate(truths)[1]


def test_holds_numbers_not_pictures(truths):
    evaluator, _ = evaluate(truths, num_workers=1)
    kept = [value for picture in evaluator.result.pictures for value in vars(picture).values()]
    assert len(kept) >= 5 * 7
    assert not any(isinstance(value, np.ndarray) for value in kept)


def test_reset_forgets(truths):
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
        lambda batch: next(answers), [b for b, _ in batches], MatteEvaluator("discs", "box")
    )
    print_csv_format(results)
    assert results == evaluate(truths)[1]
    assert flatten_results_dict(results).keys() == {f"discs/box/{k}" for k in METRICS}


def test_all_that_is_wrong_is_listed(truths):
    evaluator = MatteEvaluator("discs", "box", num_images=9)
    batches = list(make_batches(truths, range(4)))
    batches[0][0]["hw"][0] = torch.tensor([7, 7])
    batches[1][1][0] = torch.nan
    for batch, preds in (*batches, batches[0]):
        evaluator.process(batch, preds)
    (truths / "truth" / "t4.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        last = {**batches[0][0], "alpha_path": [str(truths / "truth" / "t4.png")]}
        last = {k: v[:1] for k, v in last.items()}
        evaluator.process(last, batches[0][1][:1])
        evaluator.evaluate()
    text = str(caught.value)
    for part in (
        "t0.png: The prediction is 7x7",
        "t2.png: A prediction holds NaN",
        "t0.png: there was a picture of this name before",
        "t1.png: there was a picture of this name before",
        "t4.png: Cannot read",
        "7 pictures were predicted, the set has 9",
    ):
        assert part in text
    assert len(text.splitlines()) == 7


def test_trimaps_have_to_be_there(truths):
    with pytest.raises(DataError, match="no trimap"):
        evaluate(truths, trimaps=False, use_trimap=True)
    evaluate(truths, trimaps=False)


def test_wrong_arguments(truths):
    with pytest.raises(ConfigError, match="official, corrected"):
        MatteEvaluator("discs", "box", protocol="x")
    batch, preds = next(make_batches(truths, range(2)))
    for bad in (preds[:1], preds[:, 0], preds.repeat(1, 2, 1, 1)):
        with pytest.raises(ValueError, match=r"\[2, 1, h, w\]"):
            MatteEvaluator("discs", "box").process(batch, bad)
    with pytest.raises(DataError, match="no picture"):
        MatteEvaluator("discs", "box").evaluate()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes(truths):
    """Shares are gathered; what is wrong in one process is an error, the same one, in both."""
    whole = evaluate(truths)[1]
    process = torch.multiprocessing.get_context("spawn").Process(
        target=run_second_rank, args=(truths,), daemon=True
    )
    process.start()
    first = run_rank(0, truths)
    process.join(timeout=120)
    second = json.loads((truths / "rank1.json").read_text())
    assert first[0] == whole == first.pop()  # and so is what was gone on with
    assert second[0] == {} == second.pop()
    for results in (first, second):
        assert "more than once in discs/box: t2." in results[1]
        assert "3 pictures were predicted, the set has 5" in results[2]
    assert first[1:] == second[1:]
    assert sorted(os.listdir(truths / "out0" / "mattes")) == [f"t{i}.png" for i in range(5)]
    done = ProgressLog(truths / "out0", {"model": "discs"}).read()
    assert {name: p.scores for name, p in done.items()} == {
        p.name: p.scores for p in evaluate(truths)[0].result.pictures
    }


def test_what_was_done_is_not_done_again(truths):
    progress_log = ProgressLog(truths / "out", {"model": "discs"})
    progress_log.begin([])
    options = {"output_dir": truths / "out", "num_images": 5, "progress_log": progress_log}
    with pytest.raises(DataError, match="3 pictures were predicted"):
        evaluate(truths, range(3), **options)
    done = ProgressLog(truths / "out", {"model": "discs"}).read()
    assert sorted(done) == ["t0", "t1", "t2"]
    evaluator, found = evaluate(truths, [3, 4], done=done.values(), **options)
    whole, expected = evaluate(truths)
    assert found == expected
    assert [p.scores for p in evaluator.result.pictures] == [
        p.scores for p in whole.result.pictures
    ]
    # One that is done may come along in the batch of another: it is not done again.
    done["t2"] = replace(done["t2"], scores={**done["t2"].scores, "SAD": 7.0})
    evaluator, _ = evaluate(truths, [2, 3, 4], done=done.values(), **options)
    assert evaluator.result.pictures[2].scores["SAD"] == 7.0
    with pytest.raises(DataError, match="t3.png: there was a picture of this name before"):
        evaluate(truths, [3, 3, 4], done=done.values(), **options)


def test_mattes_alone(truths):
    options = {"output_dir": truths / "out", "num_images": 5}
    progress_log = ProgressLog(truths / "out", {"model": "discs"})
    progress_log.begin([])
    assert evaluate(truths, scoring=False, progress_log=progress_log, **options)[1] == {}
    assert sorted(os.listdir(truths / "out")) == ["mattes", "progress.jsonl"]
    done = progress_log.read()
    assert not any(picture.scores for picture in done.values())
    written = [(Target(str(truths / "truth" / f"{n}.png")), p.pred_path) for n, p in done.items()]
    found = evaluate(truths, [], written=written, **options)[1]
    assert found == evaluate(truths)[1]
    (truths / "out" / "mattes" / "t1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"mattes/t1\.png: Cannot read"):
        evaluate(truths, [], written=written, **options)


def test_names_come_from_the_alpha(truths):
    write_image(truths / "truth" / "other name.png", read_alpha(truths / "truth" / "t0.png"))
    batch, preds = next(make_batches(truths, [0]))
    batch["alpha_path"] = [str(truths / "truth" / "other name.png")]
    evaluator = MatteEvaluator("discs", "box", output_dir=truths / "out", sheet_rows=0)
    evaluator.process(batch, preds)
    evaluator.evaluate()
    assert os.listdir(truths / "out" / "mattes") == ["other name.png"]
    assert not (truths / "out" / "worst_and_best.png").exists()
