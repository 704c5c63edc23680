"""How long a run is, and when what happens in it: all numbers that follow from data and config."""

import math
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from SDMatte.engine.config import derive_max_iter
from SDMatte.engine.schedule import limit_warmup
from SDMatte.errors import ConfigError


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
        ConfigError: A count cannot be, or there is nothing to do.
    """
    train = config.train
    for name, least in (("accumulate", 1), ("log_period", 1), ("checkpoints", 0)):
        _check_count(f"train.{name}", train[name], least)
    _check_count("train.evaluations", train.evaluations, 0)
    _check_count("dataloader.train.batch_size", config.dataloader.train.batch_size, 1)
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


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is a whole number of at least {least}; got {value!r}.")


def _period(max_iter: int, times: int) -> int:
    """Steps between events, so that the last of them comes with the last step; 0: no events."""
    return math.ceil(max_iter / times) if times else 0
