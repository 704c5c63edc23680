"""The length, periods and schedule of a run, derived from data, config and processes."""

from pathlib import Path

import pytest

from SDMatte.engine.schedule import make_plan, prepare_evaluations
from SDMatte.errors import ConfigError, SDMatteError
from SDMatte.runtime.config import build, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def plan(*overrides, name="SDMatte", num_samples=24_401, num_processes=8):
    return make_plan(load_config(CONFIGS / f"{name}.py", overrides), num_samples, num_processes)


def events(period, max_iter):
    """Return the steps of a periodic event that also follows the last step."""
    return [s for s in range(1, max_iter + 1) if period and (s % period == 0 or s == max_iter)]


def test_the_published_run():
    published = plan()
    assert published.max_iter == 30_501
    assert published.samples_per_step == 8
    assert published.epochs == pytest.approx(10, abs=1e-3)
    # Every tenth of the run, and none just before its end.
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
def test_plans_follow_overrides(overrides, num_processes, max_iter, samples_per_step):
    derived = plan(*overrides, num_processes=num_processes)
    assert derived.max_iter == max_iter
    assert derived.samples_per_step == samples_per_step
    assert derived.epochs == pytest.approx(max_iter * samples_per_step / 24_401)
    assert derived.checkpoint_period == derived.evaluation_period == -(-max_iter // 10)


@pytest.mark.parametrize("max_iter", [1, 2, 9, 10, 11, 19, 315])
@pytest.mark.parametrize("times", [1, 2, 3, 10])
def test_the_last_event_falls_on_the_last_step(max_iter, times):
    words = (f"train.max_iter={max_iter}", f"train.checkpoints={times}")
    derived = plan(*words, f"train.evaluations={times}")
    steps = events(derived.checkpoint_period, max_iter)
    assert 1 <= len(steps) <= times and steps[-1] == max_iter
    assert derived.evaluation_period == derived.checkpoint_period


def test_no_checkpoints_and_evaluations():
    derived = plan("train.max_iter=100", "train.checkpoints=0", "train.evaluations=0")
    assert derived.evaluation_period == 0
    assert derived.checkpoint_period == 100  # after the last step


@pytest.mark.parametrize(("max_iter", "warmup_iter"), [(1000, 200), (400, 200), (101, 50), (1, 0)])
def test_warm_up_takes_at_most_half_of_the_run(max_iter, warmup_iter):
    config = load_config(CONFIGS / "SDMatte.py")
    schedule = build(config.lr_multiplier, max_iter=max_iter)
    factors = [schedule(step / max_iter) for step in range(max_iter)]
    assert max(range(max_iter), key=factors.__getitem__) == warmup_iter
    assert factors[warmup_iter:] == pytest.approx(
        [0.005 ** (step / max_iter) for step in range(warmup_iter, max_iter)]
    )


def test_a_run_has_at_least_one_step():
    with pytest.raises(ConfigError, match="epochs=0.0001 of 24401 samples are less than one step"):
        plan("train.epochs=0.0001")


def test_missing_settings_are_named():
    config = load_config(CONFIGS / "SDMatte.py")
    del config.lr_multiplier["decay"]
    with pytest.raises(ConfigError, match="exponential_schedule lacks the setting decay."):
        build(config.lr_multiplier, max_iter=10)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("test.prompts=[bx]", "Unknown prompt type 'bx'"),
        ("test.prompts=[]", "test.prompts is empty"),
        ("test.protocol=foo", "Unknown protocol 'foo'"),
    ],
)
def test_settings_of_the_test_are_checked_without_evaluations_too(override, message):
    config = load_config(CONFIGS / "SDMatte.py", [override, "train.evaluations=0"])
    with pytest.raises(SDMatteError, match=message):
        prepare_evaluations(config)
