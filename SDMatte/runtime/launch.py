"""Run a function in several processes with torch's elastic launcher, which torchrun uses too.

detectron2's own `launch` requires CUDA, and when a process dies, it waits forever for the others.
"""

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from SDMatte import errors
from SDMatte.errors import ProcessError, RunStopped, first_line
from SDMatte.runtime.ranks import join_group, under_torchrun
from SDMatte.runtime.signals import STOP_SIGNALS, end_with_parent, exit_status, handling

DEFAULT_TIMEOUT = 1800  # seconds, as in detectron2
_SAVING_SECONDS = 600  # a signaled process may be writing a full checkpoint
_CAUSE_FIRST_SECONDS = 2


def launch(
    main: Callable[..., Any],
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
    device: str = "auto",
    timeout: float = DEFAULT_TIMEOUT,
    saved: Callable[[], str] = lambda: "earlier results are kept",
    max_restarts: int = 0,
) -> Any:
    """Run ``main(*args)`` in every process of a run.

    Under torchrun, this process is already part of the run, and torchrun sets the counts.

    Args:
        main: A module-level function.
        num_processes: Processes on this machine; on GPUs, one per GPU.
        num_machines: Machines of the run.
        machine_rank: Rank of this machine, from 0.
        dist_url: Where machine 0 listens, ``tcp://host:port``; ``auto`` on a single machine.
        args: Arguments of ``main``; must be picklable.
        device: ``train.device``. The backend is NCCL on GPUs, else gloo.
        timeout: Seconds after which a silent process counts as dead.
        saved: Describes what was saved, for the message after a signal.
        max_restarts: How often to restart all processes after one of them fails.

    Returns:
        The result of ``main`` in the first process of this machine.

    Raises:
        ConfigError: torchrun's environment is incomplete.
        ProcessError: A process died or did not respond; the others were stopped.
        RunStopped: A signal stopped the processes.
        SDMatteError: Raised by ``main``.
    """
    on_gpu = torch.cuda.is_available() and not str(device).startswith("cpu")
    if under_torchrun():
        return join_group(main, args, on_gpu, timeout)
    if num_processes * num_machines == 1 and not max_restarts:
        return main(*args)
    endpoint = f"127.0.0.1:{get_free_port()}" if dist_url == "auto" else dist_url[6:]

    def stop(number: int) -> None:
        raise RunStopped(
            f"Stopped by {signal.Signals(number).name}; {saved()}.", exit_status(number)
        )

    for name in ("torch.distributed.elastic", "torch.multiprocessing", "torchelastic-events-null"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False  # they log what is raised below
    # By default, torch kills processes after 30 s. Before 2.12, only this variable changes that.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SAVING_SECONDS))
    with tempfile.TemporaryDirectory(prefix="SDMatte-") as logs, handling(stop):
        config = LaunchConfig(
            min_nodes=num_machines,
            max_nodes=num_machines,
            nproc_per_node=num_processes,
            run_id="SDMatte",
            rdzv_backend="static",
            rdzv_endpoint=endpoint,
            rdzv_configs={"rank": machine_rank, "timeout": timeout},
            max_restarts=max_restarts,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            signals_to_handle=",".join(number.name for number in STOP_SIGNALS),
        )
        try:
            results = elastic_launch(config, _work)(main, args, on_gpu, timeout, num_processes)
            return results[min(results)]
        except SignalException as received:
            stop(received.sigval)
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            if failure.exitcode > exit_status(0):  # see `_work`
                stop(failure.exitcode - exit_status(0))
            total = num_processes * num_machines
            raise _as_error(f"Process {rank} of {total}", failure) from None
        except dist.DistError as error:
            raise ProcessError(
                f"Machine {machine_rank} of {num_machines} did not reach the others at "
                f"tcp://{endpoint} within {timeout:g} s (train.ddp.timeout): one was not started, "
                f"the port is in use, or a firewall blocks it. ({first_line(error)})"
            ) from error


def _work(main: Callable, args: tuple, on_gpu: bool, timeout: float, num_processes: int) -> Any:
    """Run ``main`` in a process of the launcher, which reads its exit status and error."""
    end_with_parent()
    if not on_gpu:  # processes that each use all cores would slow each other down
        torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    try:
        # Restarted processes need new keys: the launcher keeps its store, with the previous ones.
        return join_group(main, args, on_gpu, timeout, os.environ["TORCHELASTIC_RESTART_COUNT"])
    except RunStopped as stopped:
        sys.exit(stopped.status)
    except ProcessError:
        time.sleep(_CAUSE_FIRST_SECONDS)  # the launcher reports the first process that ends
        raise


def _as_error(who: str, failure: Any) -> Exception:
    """Return the error for a failed process, see torch's `ProcessFailure`."""
    if failure.exitcode < 0:
        hint = " (often out of memory)" if failure.exitcode == -signal.SIGKILL else ""
        return ProcessError(
            f"{who} was killed by {failure.signal_name()}{hint}; the others were stopped."
        )
    if not isinstance(failure.message, dict):
        return ProcessError(f"{who} ended with status {failure.exitcode} and without a message.")
    name, _, text = failure.message["message"].partition(": ")
    known = getattr(errors, name, None)
    if known is None:
        trace = failure.message["extraInfo"]["py_callstack"]
        return RuntimeError(f"{who} failed:\n{trace}")
    return known(text)
