"""Records of a run: scalars in files, TensorBoard and the log, and plots of them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from SDMatte.engine.schedule import RunPlan
from SDMatte.runtime.devices import peak_memory
from SDMatte.runtime.files import replace_file, write_text

RECORDS = "metrics.json"


class Meter(HookBase):
    """Record epoch, speed and memory every ``period`` steps.

    Register this hook after detectron2's `IterationTimer`, which records the time.
    """

    def __init__(self, plan: RunPlan, device: torch.device, period: int):
        self._plan = plan
        self._device = device
        self._period = period

    def after_step(self) -> None:
        """Record at the end of a period."""
        done = self.trainer.iter + 1
        if done % self._period:
            return
        storage = get_event_storage()
        scalars = {
            "epoch": done * self._plan.samples_per_step / self._plan.num_samples,
            "peak_memory_gib": peak_memory(self._device),
        }
        if "time" in storage.histories():  # the timer skips the first steps
            seconds = storage.history("time").avg(self._period)
            scalars["samples_per_second"] = self._plan.samples_per_step / seconds
        storage.put_scalars(**scalars, smoothing_hint=False)


class Records(hooks.PeriodicWriter):
    """Write scalars to the log, ``metrics.json`` and TensorBoard every ``period`` steps.

    After a resume, each step is still recorded exactly once, and smoothed values equal those of an
    uninterrupted run.

    Register this hook last and in all processes; only the main process writes.
    """

    window = 20  # smoothing window of detectron2's writers, in steps

    def __init__(self, output_dir: str | Path, period: int):
        super().__init__([], period)
        self._output_dir = Path(output_dir)
        self._saved: Mapping[str, Any] = {"last_write": -1, "history": {}}
        self._json: JSONWriter | None = None

    def before_train(self) -> None:
        """Restore the scalars and open the files, dropping records of steps to be repeated."""
        storage = self.trainer.storage
        start = storage.iter
        for name, (smoothed, values) in self._saved["history"].items():
            for value, step in values:
                storage.iter = step
                storage.put_scalar(name, value, smoothing_hint=smoothed)
        storage.iter = start
        if not comm.is_main_process():
            return
        last = self._saved["last_write"]
        path = self._output_dir / RECORDS
        trim_records(path, last)
        self._json = JSONWriter(str(path), self.window)
        board = TensorboardXWriter(str(self._output_dir), self.window, purge_step=last + 1)
        self._json._last_write = board._last_write = last
        # The printer comes last because it adds the remaining time, which is not recorded.
        line = CommonMetricPrinter(self.trainer.max_iter, self.window)
        self._writers = [self._json, board, line]

    def state_dict(self) -> dict[str, Any]:
        """Return the scalars that later records depend on."""
        storage = get_event_storage()
        hints = storage.smoothing_hints()
        return {
            "last_write": self._json._last_write if self._json else -1,
            "history": {
                name: (hints[name], history.values()[-self.window :])
                for name, history in storage.histories().items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Store a state from `state_dict`, which `before_train` applies."""
        self._saved = state


def trim_records(path: Path, last_step: int) -> None:
    """Remove incomplete lines and lines of steps after ``last_step`` from a JSON-lines file."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step(line) <= last_step]
    if kept != lines:
        write_text(path, "".join(f"{line}\n" for line in kept))


def _step(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def draw_curves(metrics_file: str | Path, output: str | Path) -> None:
    """Plot the losses, learning rate and evaluation metrics of a ``metrics.json`` as a PNG."""
    lines = Path(metrics_file).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    names = sorted({name for record in records for name in record})
    plots = {
        "losses": "loss",
        "learning rate": "lr",
        "MSE, MAD in evaluation": ("/MSE", "/MAD"),
        "SAD, Grad, Conn in evaluation": ("/SAD", "/Grad", "/Conn"),
    }
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, ends) in zip(figure.subplots(2, 2).flat, plots.items(), strict=True):
        for name in (name for name in names if name.endswith(ends)):
            points = [(r["iteration"], r[name]) for r in records if name in r]
            axes.plot(*zip(*points, strict=True), marker="." if "/" in name else "", label=name)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize="small")
    with replace_file(output) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
