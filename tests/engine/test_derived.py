"""The numbers of a run, derived from data, config and processes."""

from pathlib import Path

import pytest

from SDMatte.engine.plan import make_plan
from SDMatte.errors import ConfigError
from SDMatte.runtime.config import build, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def plan(*overrides, name="SDMatte", num_samples=24_401, num_processes=8):
    return make_plan(load_config(CONFIGS / f"{name}.py", overrides), num_samples, num_processes)


def events(period, max_iter):
    """The steps of something periodic that also comes after the last step."""
    return [s for s in range(1, max_iter + 1) if period and (s % period == 0 or s == max_iter)]


def test_the_published_run():
    published = plan()
    assert published.max_iter == 30_501
    assert published.samples_per_step == 8
    assert published.epochs == pytest.approx(10, abs=1e-3)
    assert published.warmup_iter == 200
    # A tenth of the run each, the last at its end and none just before.
    for period in (published.checkpoint_period, published.evaluation_period):
        assert period == 3051
        assert len(events(period, 30_501)) == 10


@pytest.mark.parametrize(
    ("overrides", "num_processes", "max_iter", "samples_per_step"),
    [
        ([], 1, 244_010, 1),
        (["dataloader.train.batch_size=4"], 8, 7_625, 32),
        (["train.accumulate=8"], 1, 30_501, 8),
        (["dataloader.train.batch_size=2", "train.accumulate=2"], 4, 15_250, 16),
        (["train.epochs=0.5"], 8, 1_525, 8),
        (["train.max_iter=1000", "train.epochs=7"], 8, 1_000, 8),
    ],
)
def test_all_follows_from_overrides(overrides, num_processes, max_iter, samples_per_step):
    derived = plan(*overrides, num_processes=num_processes)
    assert derived.max_iter == max_iter
    assert derived.samples_per_step == samples_per_step
    assert derived.epochs == pytest.approx(max_iter * samples_per_step / 24_401)
    assert derived.checkpoint_period == derived.evaluation_period == -(-max_iter // 10)


@pytest.mark.parametrize("max_iter", [1, 2, 9, 10, 11, 19, 315])
@pytest.mark.parametrize("times", [1, 2, 3, 10])
def test_periods_give_as_many_events_as_asked_for_and_one_at_the_end(max_iter, times):
    words = (f"train.max_iter={max_iter}", f"train.checkpoints={times}")
    derived = plan(*words, f"train.evaluations={times}")
    steps = events(derived.checkpoint_period, max_iter)
    assert 1 <= len(steps) <= times and steps[-1] == max_iter
    assert derived.evaluation_period == derived.checkpoint_period


def test_none_are_none():
    derived = plan("train.max_iter=100", "train.checkpoints=0", "train.evaluations=0")
    assert derived.evaluation_period == 0
    assert derived.checkpoint_period == 100  # the one at the end


@pytest.mark.parametrize(("max_iter", "warmup_iter"), [(1000, 200), (400, 200), (101, 50), (1, 0)])
def test_the_warm_up_is_the_schedules(max_iter, warmup_iter):
    config = load_config(CONFIGS / "SDMatte.py", [f"train.max_iter={max_iter}"])
    assert make_plan(config, 24_401, 8).warmup_iter == warmup_iter
    schedule = build(config.lr_multiplier, max_iter=max_iter)
    factors = [schedule(step / max_iter) for step in range(max_iter)]
    assert max(range(max_iter), key=factors.__getitem__) == warmup_iter
    assert factors[warmup_iter:] == pytest.approx(
        [0.005 ** (step / max_iter) for step in range(warmup_iter, max_iter)]
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=0", "train.epochs is a number above 0; got 0"),
        ("train.epochs=ten", "train.epochs is a number above 0; got 'ten'"),
        ("train.epochs=0.0001", "0.0001 epochs of 24401 samples are less than one step"),
        ("train.max_iter=0", "train.max_iter is None or a whole number of at least 1; got 0"),
        ("train.max_iter=1.5", "train.max_iter is None or a whole number of at least 1; got 1.5"),
        ("train.accumulate=0", "train.accumulate is a whole number of at least 1; got 0"),
        ("train.log_period=0", "train.log_period is a whole number of at least 1"),
        ("train.checkpoints=-1", "train.checkpoints is a whole number of at least 0"),
        ("train.evaluations=1.5", "train.evaluations is a whole number of at least 0; got 1.5"),
        ("dataloader.train.batch_size=null", "dataloader.train.batch_size is a whole number"),
    ],
)
def test_counts_that_cannot_be(override, message):
    with pytest.raises(ConfigError, match=message):
        plan(override)
