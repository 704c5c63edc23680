"""Learning-rate schedules, in the length that a run turns out to have."""

import SDMatte.compat  # noqa: F401

from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import ExponentialParamScheduler, ParamScheduler

from SDMatte.runtime.settings import number, whole


def exponential_schedule(
    max_iter: int, decay: float = 5e-3, warmup_iter: int = 200, warmup_factor: float = 1e-3
) -> ParamScheduler:
    """The published schedule: ``decay ** progress``, after a linear warm-up.

    Args:
        max_iter: Steps of the run.
        decay: The factor at the end.
        warmup_iter: Steps of the warm-up; at most half of the run.
        warmup_factor: The factor at the start.

    Raises:
        ConfigError: A value cannot be.
    """
    number(0).check("lr_multiplier.decay", decay)
    number(0, with_low=True).check("lr_multiplier.warmup_factor", warmup_factor)
    schedule = ExponentialParamScheduler(1.0, decay)
    warmup_iter = limit_warmup(warmup_iter, max_iter)
    if not warmup_iter:
        return schedule
    return WarmupParamScheduler(
        schedule,
        warmup_factor=warmup_factor,
        warmup_length=warmup_iter / max_iter,
        warmup_method="linear",
    )


def limit_warmup(warmup_iter: int, max_iter: int) -> int:
    """Says how many steps a warm-up has: at most half of the run.

    Raises:
        ConfigError: ``warmup_iter`` is no number of steps.
    """
    whole(0).check("lr_multiplier.warmup_iter", warmup_iter)
    return min(warmup_iter, max_iter // 2)
