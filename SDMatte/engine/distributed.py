"""Starting the processes of a run: one, several on this machine, or a part of a cluster's."""

import logging
import os
from collections.abc import Callable
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as launch_on_gpus
from detectron2.engine.launch import _find_free_port
from detectron2.utils import comm

from SDMatte.errors import ConfigError

logger = logging.getLogger(__name__)


def launch(
    main: Callable[..., Any],
    num_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
) -> None:
    """Runs ``main(*args)`` in every process of a run.

    On GPUs this is detectron2's launch (NCCL). That of release 0.6 insists on CUDA, so on CPUs
    the same is done here with gloo. Under torchrun this process is one of those that it started,
    and the counts come from its environment.

    Args:
        main: A module-level function.
        num_processes: Processes on this machine; on GPUs, one for each.
        num_machines: Machines of the run.
        machine_rank: Number of this machine, from 0.
        dist_url: Where machine 0 listens, ``tcp://host:port``; ``auto`` on a single machine.
        args: Arguments of ``main``; they must be picklable.

    Raises:
        ConfigError: The counts do not fit this machine or each other.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
        _join_torchrun(main, args)
        return
    if num_processes < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ConfigError(
            f"{num_processes} processes on machine {machine_rank} of {num_machines} cannot be."
        )
    if num_machines > 1 and dist_url == "auto":
        raise ConfigError("Several machines need --dist-url tcp://HOST:PORT of machine 0.")
    if num_processes * num_machines == 1:
        main(*args)
    elif torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if num_processes > gpus:
            raise ConfigError(f"{num_processes} processes need as many GPUs; {gpus} are here.")
        launch_on_gpus(main, num_processes, num_machines, machine_rank, dist_url, args)
    else:
        if dist_url == "auto":
            dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
        worker_args = (main, num_processes, num_machines, machine_rank, dist_url, args)
        mp.spawn(_cpu_worker, worker_args, nprocs=num_processes)


def _cpu_worker(
    local_rank, main, num_processes, num_machines, machine_rank, dist_url, args
) -> None:
    # Processes that each take all cores slow each other down many times.
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    _join(
        main,
        args,
        backend="gloo",
        local_size=num_processes,
        init_method=dist_url,
        world_size=num_processes * num_machines,
        rank=machine_rank * num_processes + local_rank,
    )


def _join_torchrun(main: Callable, args: tuple) -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    _join(main, args, backend, local_size, init_method="env://")


def _join(main: Callable, args: tuple, backend: str, local_size: int, **group: Any) -> None:
    dist.init_process_group(backend, **group)
    try:
        # detectron2 asks this group which processes share a machine; its own launch makes it so.
        for start in range(0, dist.get_world_size(), local_size):
            ranks = range(start, min(start + local_size, dist.get_world_size()))
            local_group = dist.new_group(list(ranks))
            if dist.get_rank() in ranks:
                comm._LOCAL_PROCESS_GROUP = local_group
        comm.synchronize()
        main(*args)
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()
