"""What a person sees of a run that is under way: one line a log period."""

import datetime
import logging
import resource
import sys
from pathlib import Path

import SDMatte.compat  # noqa: F401

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

from SDMatte.engine.plan import RunPlan

logger = logging.getLogger(__name__)

MEMORY = "peak_memory_gib"
SPEED = "samples_per_second"


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has held so far, in GiB.

    On a GPU what torch has allocated there; else the resident set of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 2**20  # from KiB
    except (OSError, StopIteration):
        # On Linux this counts what the process had held that started this one, too.
        unit = 1 if sys.platform == "darwin" else 2**10  # it is bytes there, else KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Meter(HookBase):
    """Records the epoch, speed and memory; behind detectron2's timer, which records the time.

    Args:
        plan: The run's numbers.
        device: Where the model is.
        period: Steps between records.
    """

    def __init__(self, plan: RunPlan, device: torch.device, period: int):
        self._plan = plan
        self._device = device
        self._period = period

    def after_step(self) -> None:
        """Records, at the end of a period."""
        done = self.trainer.iter + 1
        if done % self._period:
            return
        storage = get_event_storage()
        scalars = {
            "epoch": done * self._plan.samples_per_step / self._plan.num_samples,
            MEMORY: peak_memory(self._device),
        }
        if "time" in storage.histories():  # the timer leaves out the first steps
            seconds = storage.history("time").avg(self._period)
            scalars[SPEED] = self._plan.samples_per_step / seconds
        storage.put_scalars(**scalars, smoothing_hint=False)


class ProgressLine(EventWriter):
    """Logs where the run is: step, losses, learning rate, speed, memory and time left.

    Losses and times are means over the steps since the line before.

    Args:
        max_iter: Steps of the run.
        period: Steps between lines.
    """

    def __init__(self, max_iter: int, period: int):
        self._max_iter = max_iter
        self._period = period

    def write(self) -> None:
        """Logs the line; nothing in a step that is not done, or after the last one."""
        storage = get_event_storage()
        _, done = storage.latest().get("lr", (0, -1))  # recorded at the end of each step
        if done == storage.iter < self._max_iter:
            logger.info(self.line(storage))

    def line(self, storage: EventStorage) -> str:
        """Makes the line; what was not recorded is left out."""
        histories, step = storage.histories(), storage.iter + 1
        means = {name: history.avg(self._period) for name, history in histories.items()}
        last = {name: history.latest() for name, history in histories.items()}
        parts = [f"step {step}/{self._max_iter}"]
        if "epoch" in last:
            parts.append(f"epoch {last['epoch']:.2f}")
        if "total_loss" in means:
            losses = {n: v for n, v in means.items() if n.endswith("_loss") and n != "total_loss"}
            each = ", ".join(f"{n.removesuffix('_loss')} {v:.4f}" for n, v in losses.items())
            parts.append(f"loss {means['total_loss']:.4f} ({each})")
        if "lr" in last:
            parts.append(f"lr {last['lr']:.3g}")
        if "time" in means:
            parts.append(f"{means['time']:.3f} s/step, {means['data_time']:.3f} s of it for data")
        if SPEED in last:
            parts.append(f"{last[SPEED]:.2f} samples/s")
        if MEMORY in last:
            parts.append(f"peak memory {last[MEMORY]:.2f} GiB")
        if "time" in means:
            left = histories["time"].median(1000) * (self._max_iter - step)
            parts.append(f"ETA {datetime.timedelta(seconds=round(left))}")
        return " | ".join(parts)
