"""A run that is killed and resumed equals an uninterrupted one, bit for bit."""

import json
import signal

import SDMatte.compat  # noqa: F401

import pytest
import torch
from detectron2.engine import hooks
from detectron2.solver import LRMultiplier
from detectron2.utils.events import EventStorage
from models import make_batch
from runs import Run, assert_equal, assert_same_run, checkpoints, finish, records
from tiny_runs import TinyRun

from SDMatte.engine.records import trim_records
from SDMatte.runtime.config import build

KILL = -signal.SIGKILL


@pytest.mark.slow
def test_killing_one_process_at_any_moment(whole, stateful, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    words = [*stateful(output), "--resume"]
    moments = [("step", 1), ("evaluation", 2), ("checkpoint", 3), ("record", 5), ("evaluation", 6)]
    for moment in moments:
        run = Run(words, log, at=moment)
        assert run.wait() == [KILL], log.read_text()
        assert not (output / "model_final.pth").exists()
    finish(words, log)
    assert sorted(line["iteration"] for line in records(whole)) == [1, 2, 3, 5, 6]
    assert_same_run(whole, output)
    assert checkpoints(output) == checkpoints(whole)

    before = (output / "model_final.pth").stat().st_mtime_ns
    assert "is already complete" in finish(words, log)
    assert (output / "model_final.pth").stat().st_mtime_ns == before


@pytest.mark.slow
def test_killing_one_of_two_processes(stateful, tmp_path):
    finish(stateful(tmp_path / "whole"), tmp_path / "whole.log", num_processes=2)
    output, log = tmp_path / "run", tmp_path / "log"
    words = [*stateful(output), "--resume"]
    for moment, rank in ((("step", 2), 1), (("checkpoint", 3), 0)):
        run = Run(words, log, at=moment, rank=rank, num_processes=2)
        codes = run.wait()
        assert codes[rank] == KILL and codes[1 - rank] == 2, log.read_text()
    assert f"Process {1 - rank} of 2 lost the others" in log.read_text()
    finish(words, log, num_processes=2)
    assert_same_run(tmp_path / "whole", output)
    assert checkpoints(output) == checkpoints(tmp_path / "whole")


@pytest.mark.parametrize("last", [-1, 3, 9])
def test_trim_records(tmp_path, last):
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": step, "loss": 1.5}) for step in (1, 3, 2, 5)]
    path.write_text("\n".join([*lines, '{"iteration": 2, "lo']))
    trim_records(path, last)
    steps = [json.loads(line)["iteration"] for line in path.read_text().splitlines()]
    assert steps == [step for step in (1, 3, 2, 5) if step <= last]
    trim_records(tmp_path / "nowhere.json", last)


def resumed_trainer(tmp_path, *overrides):
    """Return a tiny run with a schedule, resumed from its state if that was saved."""
    run = TinyRun.build("lr_multiplier.warmup_iter=0", *overrides)
    schedule = LRMultiplier(
        run.trainer.optimizer, build(run.config.lr_multiplier, max_iter=6), max_iter=6
    )
    run.trainer.register_hooks([hooks.LRScheduler(scheduler=schedule)])
    path = tmp_path / "state.pth"
    if path.exists():
        state = torch.load(path)
        run.task.model.load_state_dict(state["model"])
        run.trainer.load_state_dict(state["trainer"])
        run.trainer.iter += 1
    return run, schedule


def step(run, steps):
    run.trainer.before_train()
    with EventStorage(run.trainer.iter) as run.trainer.storage:
        for _ in range(steps):
            run.trainer.run_step()
            run.trainer.after_step()
            run.trainer.iter += 1


def by_decay(run, name):
    return {group["weight_decay"]: group[name] for group in run.trainer.optimizer.param_groups}


@pytest.mark.slow
def test_a_changed_learning_rate_takes_effect_on_resume(tmp_path, caplog):
    first, schedule = resumed_trainer(tmp_path)
    step(first, 2)
    first.trainer.iter -= 1
    states = {"model": first.task.model.state_dict(), "trainer": first.trainer.state_dict()}
    torch.save(states, tmp_path / "state.pth")
    first.trainer.iter += 1

    same, _ = resumed_trainer(tmp_path)
    assert not [r for r in caplog.records if "From step" in r.message]
    assert_equal(
        same.trainer.optimizer.state_dict()["param_groups"],
        first.trainer.optimizer.state_dict()["param_groups"],
    )

    # The reference continues with both changed by hand.
    for group in first.trainer.optimizer.param_groups:
        group["lr"] *= 0.5
        group["weight_decay"] = 0.3 if group["weight_decay"] else 0.0
    schedule.base_lrs = [0.5 * lr for lr in schedule.base_lrs]

    changed = ["optimizer.lr=1e-3", "optimizer.weight_decay=0.3"]
    resumed, _ = resumed_trainer(tmp_path, *changed)
    assert "From step 3 on, optimizer.lr was 0.002 and is 0.001" in caplog.text
    assert "optimizer.weight_decay was 0.1 and is 0.3" in caplog.text
    assert by_decay(resumed, "initial_lr") == {0.0: 1e-3, 0.3: 1e-3}
    for run in (first, resumed):
        run.trainer._data_loader_iter = iter([make_batch(seed=7), make_batch(seed=8)])
        step(run, 2)
    rates = [by_decay(run, "lr") for run in (first, resumed)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    weights = (list(run.task.model.parameters()) for run in (first, resumed))
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
