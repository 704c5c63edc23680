"""Launch the processes of a run: one, several on this machine, or part of a cluster's job.

Extends detectron2's `launch` to CPUs, torchrun and SLURM, with the same arguments and process
groups. Its own, of release 0.6, requires CUDA and waits forever for the others when a process dies.
"""

import contextlib
import datetime
import logging
import multiprocessing.connection
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import SDMatte.compat  # noqa: F401

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine.launch import _find_free_port
from detectron2.utils import comm

from SDMatte import errors
from SDMatte.errors import ConfigError, ProcessError, RunStopped, SDMatteError
from SDMatte.runtime.signals import end_with_parent, exit_status, handling

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 1800  # seconds, as in detectron2
GRACE = 10  # seconds for the other processes to end after one has failed
_REPORT_LENGTH = 4000
_POLL_SECONDS = 0.2
_MOST_NAMED = 8

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ProcessInfo:
    """One process of a run.

    Attributes:
        rank: Its number among all processes.
        world_size: Number of processes.
        local_rank: Its number on its machine.
        machine: Number of its machine.
        address: Where rank 0 listens: ``tcp://host:port``, or ``env://``.
    """

    rank: int
    world_size: int
    local_rank: int
    machine: int
    address: str


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
) -> None:
    """Run ``main(*args)`` in every process of a run.

    Under torchrun, or as one of several tasks of ``srun``, this process is already one of the run's
    and the counts come from the environment. With ``num_processes`` under ``srun``, each task is a
    machine.

    Args:
        main: A module-level function.
        num_processes: Processes on this machine; on GPUs, one per GPU.
        num_machines: Machines of the run.
        machine_rank: Number of this machine, from 0.
        dist_url: Where machine 0 listens, ``tcp://host:port``; ``auto`` on a single machine.
        args: Arguments of ``main``; must be picklable.
        device: ``train.device``. The backend is NCCL on GPUs, else gloo.
        timeout: Seconds after which a silent process counts as dead.
        saved: Describes what was saved, for the message after a signal that the processes did not
            handle themselves.

    Raises:
        ConfigError: The counts do not fit this machine or each other, or the environment of a
            cluster's task is incomplete.
        ProcessError: A process died or did not answer; the others were stopped.
        RunStopped: A signal stopped the processes.
        SDMatteError: Raised by ``main``.
    """
    on_gpu = torch.cuda.is_available() and not str(device).startswith("cpu")
    info = torchrun_process(os.environ)
    if info is None:
        slurm = slurm_process(os.environ)
        if slurm is not None and num_processes == 1:
            info = slurm
        elif slurm is not None:
            num_machines, machine_rank = slurm.world_size, slurm.rank
            dist_url = slurm.address if dist_url == "auto" else dist_url
            if slurm.machine != slurm.rank:
                raise ConfigError(
                    "Under srun, --num-processes needs one task per machine "
                    "(--ntasks-per-node=1). Without it, start one task per process."
                )
    total = num_processes * num_machines if info is None else info.world_size
    if total > 1 and str(device).startswith("cuda:"):
        raise ConfigError(
            f"train.device={device} is one GPU for {total} processes; use cuda or auto to give "
            f"each its own."
        )
    if info is not None:
        _join(info, main, args, on_gpu, timeout, announce=True)
        return
    if num_processes < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ConfigError(
            f"Got {num_processes} processes on machine {machine_rank} of {num_machines}; "
            f"--num-processes and --num-machines must be at least 1, --machine-rank from 0 to "
            f"--num-machines - 1."
        )
    if num_machines > 1 and dist_url == "auto":
        raise ConfigError("Runs on several machines need --dist-url tcp://HOST:PORT of machine 0.")
    if dist_url != "auto" and not re.fullmatch(r"tcp://[^/]+:\d+", dist_url):
        raise ConfigError(f"--dist-url must be tcp://HOST:PORT of machine 0; got {dist_url!r}.")
    if total == 1:
        main(*args)
        return
    if on_gpu and num_processes > torch.cuda.device_count():
        raise ConfigError(
            f"{num_processes} processes need as many GPUs; this machine has "
            f"{torch.cuda.device_count()}."
        )
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    first, world_size = machine_rank * num_processes, num_machines * num_processes
    infos = [
        ProcessInfo(first + index, world_size, index, machine_rank, dist_url)
        for index in range(num_processes)
    ]
    _start(infos, main, args, on_gpu, timeout, saved)


def torchrun_process(environ: Mapping[str, str]) -> ProcessInfo | None:
    """Read the environment of a process of torchrun; None in any other process.

    Raises:
        ConfigError: A variable is missing or not a number.
    """
    if not {"RANK", "WORLD_SIZE"} <= environ.keys():
        return None
    _require(environ, "MASTER_ADDR", "MASTER_PORT")
    return _read_process(environ, "RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "env://")


def slurm_process(environ: Mapping[str, str]) -> ProcessInfo | None:
    """Read the environment of one of several tasks of ``srun``; None in any other process.

    Rank 0 listens at MASTER_ADDR and MASTER_PORT. Their defaults are the step's first machine and a
    port derived from the job's number.

    Raises:
        ConfigError: A variable is missing or not a number.
    """
    # Not SLURM_NTASKS: a batch script has it too, with SLURM_PROCID=0, but is not a task.
    if environ.get("SLURM_PROCID", "0") != "0" or "SLURM_STEP_NODELIST" in environ:
        _require(environ, "SLURM_STEP_NUM_TASKS")
    if _integer(environ, "SLURM_STEP_NUM_TASKS", 1) < 2:
        return None
    _require(environ, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
    if not environ.get("MASTER_ADDR"):
        _require(environ, "SLURM_STEP_NODELIST")
    if not environ.get("MASTER_PORT"):
        _require(environ, "SLURM_JOB_ID")
    host = environ.get("MASTER_ADDR") or _first_host(environ["SLURM_STEP_NODELIST"])
    port = environ.get("MASTER_PORT") or 20000 + _integer(environ, "SLURM_JOB_ID") % 20000
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")
    return _read_process(environ, *names, f"tcp://{host}:{port}")


def _read_process(
    environ: Mapping[str, str], rank: str, size: str, local: str, machine: str, address: str
) -> ProcessInfo:
    if environ.get("MASTER_PORT"):
        _integer(environ, "MASTER_PORT")
    info = ProcessInfo(
        rank=_integer(environ, rank, 0),
        world_size=_integer(environ, size, 0),
        local_rank=_integer(environ, local, 0),
        machine=_integer(environ, machine, 0),
        address=address,
    )
    if info.rank >= info.world_size:
        raise ConfigError(
            f"The environment has {rank}={info.rank} and {size}={info.world_size}; ranks start "
            f"at 0."
        )
    return info


def _require(environ: Mapping[str, str], *names: str) -> None:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        cluster = "SLURM" if missing[0].startswith("SLURM") else "torchrun"
        raise ConfigError(
            f"The environment of this {cluster} process lacks {', '.join(missing)}. Pass all "
            f"variables of {cluster} on (also into containers), or unset all of them for a run on "
            f"this machine alone."
        )


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal():
        raise ConfigError(f"The environment variable {name} is {text!r}; it must be an integer.")
    return int(text)


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


def _first_host(hosts: str) -> str:
    """Return the first host of a SLURM node list such as ``gpu[07-09,12]-ib,login``."""
    return "".join(re.findall(r"([^,\[]*)(?:\[([^\],-]*)[^\]]*\])?([^,\[]*)", hosts)[0])


def _join(
    info: ProcessInfo, main: Callable, args: tuple, on_gpu: bool, timeout: float, announce: bool
) -> None:
    """Join the process group and run ``main`` in it."""
    if on_gpu:  # a task of srun may see only its own GPU
        torch.cuda.set_device(info.local_rank % torch.cuda.device_count())
    patience = datetime.timedelta(seconds=timeout)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=_meet(info, patience, announce),
            world_size=info.world_size,
            rank=info.rank,
            timeout=patience,
        )
        _make_groups(info, patience)
        comm.synchronize()
        main(*args)
    except RuntimeError as error:
        if isinstance(error, SDMatteError) or not has_lost_others(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ProcessError(
            f"Process {info.rank} of {info.world_size} lost the others: one of them died, or "
            f"gave no answer for {timeout:g} s (train.ddp.timeout). See its own message. "
            f"({reason})"
        ) from error
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        # NCCL would wait for processes that may be gone; it also closes with this process.
        if dist.is_initialized() and not (on_gpu and sys.exc_info()[0]):
            dist.destroy_process_group()


def _meet(info: ProcessInfo, patience: datetime.timedelta, announce: bool) -> dist.Store:
    """Wait until all processes have joined.

    Args:
        info: This process.
        patience: How long to wait.
        announce: Whether to log which ranks are awaited, where and until when.

    Raises:
        ProcessError: Not all joined, or rank 0's port is in use.
    """
    address = info.address
    if address == "env://":
        address = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    who = f"Process {info.rank} of {info.world_size}"
    seconds = patience.total_seconds()
    deadline = time.monotonic() + seconds
    until = f"{datetime.datetime.now() + patience:%H:%M:%S} (train.ddp.timeout={seconds:g} s)"
    announce = announce and info.local_rank == 0

    def say(text: str) -> None:
        if announce:
            logger.warning("%s %s, until %s.", who, text, until)

    # torchrun's own process may listen already, across several attempts.
    listens = info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    say(f"listens at {address}" if listens else f"connects to process 0 at {address}")
    try:
        server = dist.TCPStore(
            host.strip("[]"), int(port), None, listens, patience, wait_for_workers=False
        )
    except dist.DistError as error:
        if "address already in use" in str(error).lower():
            raise ProcessError(
                f"{who} cannot listen at {address}: the port is in use, perhaps by another run. "
                f"Choose another one (--dist-url, MASTER_PORT)."
            ) from error
        raise ProcessError(
            f"{who} could not reach process 0 at {address} within {seconds:g} s "
            f"(train.ddp.timeout): it was not started there, the address is wrong (--dist-url, "
            f"MASTER_ADDR and MASTER_PORT), or a firewall blocks it."
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"SDMatte/{attempt}", server)
    store.set(f"joined/{info.rank}", "")
    awaited, told = list(range(info.world_size)), 0
    while awaited := [rank for rank in awaited if not store.check([f"joined/{rank}"])]:
        if len(awaited) != told:
            told = len(awaited)
            joined = info.world_size - told
            say(
                f"waits at {address}: {joined} of {info.world_size} have joined, waiting for "
                f"{_shorten(awaited)}"
            )
        if time.monotonic() > deadline:
            raise ProcessError(
                f"{who} waited {seconds:g} s (train.ddp.timeout) at {address}, but process "
                f"{_shorten(awaited)} did not join."
            )
        time.sleep(_POLL_SECONDS)
    return store


def _shorten(ranks: Sequence[int]) -> str:
    """Name a few ranks and count the others."""
    shown = ", ".join(map(str, ranks[:_MOST_NAMED]))
    more = len(ranks) - _MOST_NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def _make_groups(info: ProcessInfo, patience: datetime.timedelta) -> None:
    """Create the process groups that detectron2 uses."""
    machines: list[int] = [0] * info.world_size
    dist.all_gather_object(machines, info.machine)
    for machine in sorted(set(machines)):
        group = dist.new_group([rank for rank, m in enumerate(machines) if m == machine])
        if machine == info.machine:
            comm._LOCAL_PROCESS_GROUP = group
    # For detectron2's gathers, which would create one with its own timeout.
    gloo = dist.new_group(backend="gloo", timeout=patience)
    comm._get_global_gloo_group = lambda: gloo


def has_lost_others(error: BaseException) -> bool:
    """Return whether an error means that another process died or does not answer."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error)
    )


@dataclass(frozen=True)
class _Failure:
    """How a process failed, in a form that can be sent to its parent.

    Attributes:
        rank: Its rank.
        kind: The name of a class of `SDMatte.errors`, or ``""`` for any other exception.
        text: The message; the traceback of any other exception.
        status: The status of a `RunStopped`.
    """

    rank: int
    kind: str
    text: str
    status: int = 0


def _start(infos: Sequence[ProcessInfo], main, args, on_gpu, timeout, saved) -> None:
    """Start processes on this machine and wait for them."""
    failures = mp.get_context("spawn").SimpleQueue()
    job = (infos, main, args, on_gpu, timeout, failures)
    processes = mp.spawn(_work, job, nprocs=len(infos), join=False).processes
    received: list[int] = []

    def pass_on(number: int) -> None:
        received.append(number)
        for process in processes:
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    with handling(pass_on):
        late = _wait(processes)
    reported = []
    while not failures.empty():
        reported.append(failures.get())
    ranks = [info.rank for info in infos]
    died = {r: -p.exitcode for r, p in zip(ranks, processes, strict=True) if p.exitcode < 0}
    hung = [ranks[index] for index in late]
    failed = any(process.exitcode for process in processes)
    _raise_cause(reported, died, hung, failed, infos[0].world_size, received, saved)


def _work(index: int, infos, main, args, on_gpu, timeout, failures) -> None:
    """Run ``main`` in a process and report its failure."""
    end_with_parent()
    if not on_gpu:  # with all cores each, the processes would slow each other down
        torch.set_num_threads(max(1, torch.get_num_threads() // len(infos)))
    rank, failure = infos[index].rank, None
    try:
        announce = len(infos) < infos[index].world_size  # there are other machines
        _join(infos[index], main, args, on_gpu, timeout, announce)
    except RunStopped as stopped:
        failures.put(_Failure(rank, "RunStopped", str(stopped), stopped.status))
    except SDMatteError as error:
        failure = _Failure(rank, type(error).__name__, str(error))
    except Exception:
        failure = _Failure(rank, "", traceback.format_exc()[-_REPORT_LENGTH:])
    if failure is not None:
        failures.put(failure)
        sys.exit(1)


def _wait(processes: Sequence[BaseProcess]) -> list[int]:
    """Wait until all processes have ended; after a failure, stop those that do not end.

    Returns:
        Indices of the processes that were stopped.
    """
    running = list(processes)
    while running and not any(process.exitcode for process in processes):
        multiprocessing.connection.wait([process.sentinel for process in running])
        running = [process for process in running if process.exitcode is None]
    _join_within(GRACE, running)
    late = [index for index, process in enumerate(processes) if process.exitcode is None]
    for index in late:
        processes[index].kill()
        processes[index].join()
    return late


def _join_within(seconds: float, processes: Sequence[BaseProcess]) -> None:
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, end - time.monotonic()))


def _raise_cause(
    reported: Sequence[_Failure],
    died: Mapping[int, int],
    hung: Sequence[int],
    failed: bool,
    world_size: int,
    received: Sequence[int],
    saved: Callable[[], str],
) -> None:
    """Raise the original error, not those that followed from it."""
    died = {rank: number for rank, number in died.items() if rank not in hung}
    stopped = [failure for failure in reported if failure.kind == "RunStopped"]
    lost = [failure for failure in reported if failure.kind == "ProcessError"]
    if stopped:
        raise RunStopped(stopped[0].text, stopped[0].status)
    if received:
        number = received[0]
        raise RunStopped(
            f"Stopped by {signal.Signals(number).name}; {saved()}.",
            exit_status(number),
        )
    for failure in reported:
        if failure.kind and failure not in lost:
            raise getattr(errors, failure.kind, SDMatteError)(failure.text)
    for rank, number in died.items():
        if number != signal.SIGABRT:  # NCCL also aborts when another process is gone
            hint = " (often out of memory)" if number == signal.SIGKILL else ""
            raise ProcessError(
                f"Process {rank} of {world_size} was killed by {signal.Signals(number).name}"
                f"{hint}; the others were stopped."
            )
    for failure in reported:
        if not failure.kind:
            raise RuntimeError(f"Process {failure.rank} of {world_size} failed:\n{failure.text}")
    if lost:
        ended = (
            f" Process {', '.join(map(str, hung))} did not answer and was killed." if hung else ""
        )
        raise ProcessError(lost[0].text + ended)
    if failed:
        raise ProcessError(f"One of {world_size} processes ended without a message: {dict(died)}.")
