"""How long a run is, and when what happens in it: all numbers that follow from data and config."""

import math
from dataclasses import dataclass

from omegaconf import DictConfig

from SDMatte.engine.schedule import limit_warmup
from SDMatte.errors import ConfigError
from SDMatte.evaluation.run import (
    HOW_TO_NAME_A_SET,
    choose_test_sets,
    dataset_names,
    plan_test,
)
from SDMatte.runtime.config import derive_max_iter
from SDMatte.scoring.metrics import METRICS


@dataclass(frozen=True)
class RunPlan:
    """The derived numbers of a run.

    Attributes:
        num_samples: Samples of an epoch.
        batch_size: Samples that one process takes at once.
        accumulate: Batches of a step.
        num_processes: Over all machines.
        max_iter: Steps.
        warmup_iter: Steps in which the learning rate grows, of `max_iter`.
        checkpoint_period: Steps between checkpoints; there is one after the last step in any case.
        evaluation_period: Steps between evaluations, the last one after the last step; 0: none.
    """

    num_samples: int
    batch_size: int
    accumulate: int
    num_processes: int
    max_iter: int
    warmup_iter: int
    checkpoint_period: int
    evaluation_period: int

    @property
    def samples_per_step(self) -> int:
        """Samples that all processes take in a step."""
        return self.batch_size * self.accumulate * self.num_processes

    @property
    def epochs(self) -> float:
        """How often a sample comes, on average."""
        return self.max_iter * self.samples_per_step / self.num_samples


def make_plan(config: DictConfig, num_samples: int, num_processes: int) -> RunPlan:
    """Derives a run's numbers from the data's real length and the config as overridden.

    Args:
        config: The whole config.
        num_samples: Samples of an epoch.
        num_processes: Over all machines.

    Raises:
        ConfigError: There is nothing to do.
    """
    train = config.train
    max_iter = derive_max_iter(config, num_samples, num_processes)
    return RunPlan(
        num_samples=num_samples,
        batch_size=config.dataloader.train.batch_size,
        accumulate=train.accumulate,
        num_processes=num_processes,
        max_iter=max_iter,
        warmup_iter=limit_warmup(config.lr_multiplier.get("warmup_iter", 0), max_iter),
        checkpoint_period=_period(max_iter, train.checkpoints) or max_iter,
        evaluation_period=_period(max_iter, train.evaluations),
    )


def _period(max_iter: int, times: int) -> int:
    """Steps between events, so that the last of them comes with the last step; 0: no events."""
    return math.ceil(max_iter / times) if times else 0


def prepare_evaluations(config: DictConfig) -> None:
    """Settle the sets of the evaluations in a training; refuse what would only fail later.

    Where there is no set but optional ones that are not there, there are no evaluations.

    Args:
        config: The whole config; see `SDMatte.evaluation.run.choose_test_sets`.

    Raises:
        ConfigError: There is no set, prompt or protocol to evaluate with, or the metrics will not
            have the one that the best weights go by.
        DataError: A test set is not there.
    """
    settings = config.train
    if not settings.evaluations:
        if settings.best_metric:
            raise ConfigError("train.best_metric needs train.evaluations.")
        return
    left_out = choose_test_sets(config, training=True)
    if not dataset_names(config):
        if not left_out:
            raise ConfigError(
                "dataloader.test.dataset.names names no set; train.evaluations=0 trains without."
            )
        if settings.best_metric:
            raise ConfigError(
                f"train.best_metric is {settings.best_metric!r}, but there is no test set. "
                f"{HOW_TO_NAME_A_SET}"
            )
        settings.evaluations = 0
        return
    keys = [test.key for test in plan_test(config)]
    names = [f"{key}/{metric}" for key in keys for metric in METRICS]
    if settings.best_metric and settings.best_metric not in names:
        raise ConfigError(
            f"train.best_metric is {settings.best_metric!r}; the evaluations give "
            f"{', '.join(names)}."
        )
