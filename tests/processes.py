"""Functions for test processes; imports are few, since each process imports this module."""

import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm

from SDMatte.errors import DataError, RunStopped
from SDMatte.runtime.launch import launch
from SDMatte.runtime.ranks import was_restarted
from SDMatte.runtime.signals import StopRequest, exit_status


def describe(folder: str) -> None:
    """Write the rank and sizes of this process, and the sum of all ranks."""
    total = torch.tensor(comm.get_rank())
    dist.all_reduce(total)
    content = {
        "rank": comm.get_rank(),
        "world_size": comm.get_world_size(),
        "local_rank": comm.get_local_rank(),
        "local_size": comm.get_local_size(),
        "sum": total.item(),
        "gathered": comm.all_gather(comm.get_rank()),
    }
    (Path(folder) / str(comm.get_rank())).write_text(json.dumps(content))


def end(how: str, folder: str) -> None:
    """Fail in rank 1 while rank 0 waits for it, or have it stop their parent."""
    describe(folder)
    if how == "stopped":
        stop = StopRequest()
        with stop.listen():
            comm.synchronize()  # both listen
            if comm.get_rank() == 1:
                os.kill(os.getppid(), signal.SIGTERM)
            while not stop.received:
                time.sleep(0.01)
        raise RunStopped("Saved.", exit_status(stop.received))
    if comm.get_rank() == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("An image.")
    comm.synchronize()


def train_killed_once(config_file: str, overrides: list[str]) -> None:
    """Train; rank 1 is killed before step 3, unless the launcher has restarted the run."""
    from runs import MOMENTS, kill

    from SDMatte.engine.train import train

    if comm.get_rank() == 1 and not was_restarted():
        MOMENTS["before step"](3, kill)
    train(config_file, overrides)


def wait_forever(folder: str) -> None:
    """Write the process id and hang."""
    (Path(folder) / str(comm.get_rank())).write_text(str(os.getpid()))
    time.sleep(1000)


def starter(folder: str) -> None:
    """Launch two processes, with SIGINT ignored as by ``nohup``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launch(wait_forever, num_processes=2, args=(folder,), device="cpu")


def as_task(environ: dict[str, str], folder: str) -> None:
    """Run as a process of a cluster's launcher."""
    os.environ.update(environ)
    launch(describe, args=(folder,), device="cpu")
