"""The process group of a run: joining it, and running functions in its main process."""

import datetime
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import SDMatte.compat  # noqa: F401

import torch
import torch.distributed as dist
from detectron2.utils import comm

from SDMatte.errors import ConfigError, ProcessError, SDMatteError, first_line

_Result = TypeVar("_Result")


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def was_restarted() -> bool:
    """Return whether the launcher restarted this process after a failure."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def join_group(
    main: Callable, args: tuple, on_gpu: bool, timeout: float, store_prefix: str = ""
) -> Any:
    """Join the process group of torchrun's environment and run ``main(*args)`` in it.

    Args:
        main: The function to run.
        args: Its arguments.
        on_gpu: Whether to use NCCL, with a GPU per process, rather than gloo.
        timeout: Seconds after which a silent process counts as dead.
        store_prefix: Prefix of the keys by which the processes find each other.

    Raises:
        ConfigError: The environment is incomplete.
        ProcessError: Another process died or did not respond.
    """
    who = f"Process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
    patience = datetime.timedelta(seconds=timeout)
    try:
        local_size = int(os.environ["LOCAL_WORLD_SIZE"])
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.PrefixStore(store_prefix, store),
            rank=rank,
            world_size=world_size,
            timeout=patience,
        )
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{who} has an incomplete torchrun environment: {error}") from error
    try:
        comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups(local_size, timeout=patience)
        # For detectron2's gathers, which would create a group with another timeout.
        gloo = dist.new_group(backend="gloo", timeout=patience)
        comm._get_global_gloo_group = lambda: gloo
        return main(*args)
    except RuntimeError as error:
        if isinstance(error, SDMatteError) or not has_lost_others(error):
            raise
        raise ProcessError(
            f"{who} lost the others: one of them died, or did not respond for {timeout:g} s "
            f"(train.ddp.timeout). See its own message. ({first_line(error)})"
        ) from error
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        # NCCL would wait for processes that may be gone; it also closes with this process.
        if dist.is_initialized() and not (on_gpu and sys.exc_info()[0]):
            dist.destroy_process_group()


def run_on_main(function: Callable[[], _Result]) -> _Result:
    """Call a function in the main process only; every process gets its result or `SDMatteError`.

    The result must be picklable.
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
    """Return whether an error means that another process died or does not respond."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error)
    )
