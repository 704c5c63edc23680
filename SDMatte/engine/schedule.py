"""Length, periods and learning-rate schedule of a run, derived from its data and config."""

import math
from dataclasses import dataclass

import SDMatte.compat  # noqa: F401

from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import ExponentialParamScheduler, ParamScheduler
from omegaconf import DictConfig
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from SDMatte.errors import ConfigError
from SDMatte.evaluation.plan import (
    HOW_TO_NAME_A_SET,
    check_test,
    choose_test_sets,
    dataset_names,
    plan_test,
)
from SDMatte.runtime.schema import Settings
from SDMatte.scoring.metrics import METRICS


@dataclass(frozen=True)
class RunPlan:
    """Numbers derived from the data and the config of a run."""

    num_samples: int  # samples in an epoch
    samples_per_step: int  # samples in a step of all processes
    max_iter: int  # steps in the run
    checkpoint_period: int  # steps between checkpoints; the last step always has one
    evaluation_period: int  # steps between evaluations, including one after the last step; 0: none

    @property
    def epochs(self) -> float:
        """Length of the run in epochs."""
        return self.max_iter * self.samples_per_step / self.num_samples


def make_plan(config: DictConfig, num_samples: int, num_processes: int) -> RunPlan:
    """Derive the plan of a run.

    The published schedule is 24,401 samples * 10 epochs / 8 processes = 30,501 steps.

    ``train.max_iter``, if set, overrides ``train.epochs``.

    Raises:
        ConfigError: The run is shorter than one step.
    """
    train = config.train
    per_step = config.dataloader.train.batch_size * train.accumulate * num_processes
    max_iter = train.max_iter
    if max_iter is None:
        max_iter = round(train.epochs * num_samples) // per_step
    if max_iter < 1:
        raise ConfigError(
            f"train.epochs={train.epochs} of {num_samples} samples are less than one step of "
            f"{per_step} samples."
        )

    def period(times: int) -> int:  # so that the last event falls on the last step
        return math.ceil(max_iter / times) if times else 0

    return RunPlan(
        num_samples=num_samples,
        samples_per_step=per_step,
        max_iter=max_iter,
        checkpoint_period=period(train.checkpoints) or max_iter,
        evaluation_period=period(train.evaluations),
    )


class _ExponentialSettings(Settings):
    decay: PositiveFloat
    warmup_iter: NonNegativeInt
    warmup_factor: NonNegativeFloat


def exponential_schedule(
    max_iter: int, decay: float, warmup_iter: int, warmup_factor: float
) -> ParamScheduler:
    """Build the published schedule: ``decay ** progress`` after a linear warm-up.

    Args:
        max_iter: Steps in the run.
        decay: Factor on the learning rate at the end of the run.
        warmup_iter: Steps of warm-up, at most half of the run.
        warmup_factor: Factor on the learning rate at the start of the warm-up.

    Raises:
        ConfigError: A value is out of range.
    """
    _ExponentialSettings.of(
        dict(decay=decay, warmup_iter=warmup_iter, warmup_factor=warmup_factor), "lr_multiplier"
    )
    schedule = ExponentialParamScheduler(1.0, decay)
    steps = min(warmup_iter, max_iter // 2)
    if not steps:
        return schedule
    return WarmupParamScheduler(
        schedule,
        warmup_factor=warmup_factor,
        warmup_length=steps / max_iter,
        warmup_method="linear",
    )


def prepare_evaluations(config: DictConfig) -> None:
    """Choose the test sets for evaluations during training and validate their settings.

    This changes the config, see `choose_test_sets`. ``train.evaluations`` becomes 0 if only
    optional sets are given and none of them exists.

    Raises:
        ConfigError: No test set is given, a prompt or protocol is unknown, or the evaluations do
            not compute ``train.best_metric``.
        DataError: A test set does not exist.
    """
    settings = config.train
    check_test(config)  # without evaluations too: the run's config.yaml is for testing
    if not settings.evaluations:
        if settings.best_metric:
            raise ConfigError("train.best_metric needs train.evaluations to be at least 1.")
        return
    left_out = choose_test_sets(config, training=True)
    if not dataset_names(config):
        if not left_out:
            raise ConfigError(
                "dataloader.test.dataset.names is empty. Add a test set, or train without "
                "evaluations: train.evaluations=0."
            )
        if settings.best_metric:
            raise ConfigError(
                f"train.best_metric is {settings.best_metric!r}, but there is no test set. "
                f"{HOW_TO_NAME_A_SET}"
            )
        settings.evaluations = 0
        return
    names = [f"{test.key}/{metric}" for test in plan_test(config) for metric in METRICS]
    if settings.best_metric and settings.best_metric not in names:
        raise ConfigError(
            f"train.best_metric must be one of {', '.join(names)}; got {settings.best_metric!r}."
        )
