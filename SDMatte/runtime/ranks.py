"""What the processes of a run ask of each other."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import SDMatte.compat  # noqa: F401

import torch.distributed as dist
from detectron2.utils import comm

from SDMatte.errors import SDMatteError

_Result = TypeVar("_Result")


def was_restarted() -> bool:
    """Return whether the launcher started this process after another one had failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def run_on_main(function: Callable[[], _Result]) -> _Result:
    """Call a function in the main process only; every process gets its result or its error.

    Args:
        function: Its result must be picklable.

    Raises:
        SDMatteError: Raised by the function.
    """
    outcome: Any = None
    if comm.is_main_process():
        try:
            outcome = function()
        except SDMatteError as error:
            outcome = error
    outcome = comm.all_gather(outcome)[0]
    if isinstance(outcome, SDMatteError):
        raise outcome
    return outcome


def has_lost_others(error: BaseException) -> bool:
    """Return whether an error means that another process died or does not answer."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error)
    )
