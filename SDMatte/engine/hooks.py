"""Periodic work of a training that detectron2 has no hook for, or has in another way."""

import contextlib
import json
import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import SDMatte.compat  # noqa: F401

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter, get_event_storage
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from SDMatte.engine.checkpoint import MatteCheckpointer
from SDMatte.engine.output import RECORDS
from SDMatte.engine.progress import ProgressLine
from SDMatte.errors import RunStopped
from SDMatte.modeling.sdmatte import SDMatte
from SDMatte.prompts.types import get_prompt_type
from SDMatte.runtime.files import write_text
from SDMatte.runtime.signals import exit_status

logger = logging.getLogger(__name__)


class WeightAverage(HookBase):
    """Keeps an exponential moving average of the weights that are trained.

    The first step's weights start it; then each step moves it by ``1 - decay`` towards its own.

    Args:
        model: The model in training; its frozen weights are not copied.
        decay: In (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self._trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        self._average = AveragedModel(self._trained, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def after_step(self) -> None:
        """Moves the average."""
        self._average.update_parameters(self._trained)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the model the average's weights; it has its own again after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for own, average in zip(self._trained, self._average.module, strict=True):
            own.data, average.data = average.data, own.data

    def state_dict(self) -> dict[str, Any]:
        """The weights in training; a checkpoint's model holds the average."""
        return {
            "count": self._average.n_averaged.item(),
            "trained": [parameter.detach() for parameter in self._trained],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state; the model must hold the average, and gets the weights in training.

        Raises:
            ValueError: The state is of a model of which something else is trained.
        """
        shapes = [[tuple(p.shape) for p in part] for part in (self._trained, state["trained"])]
        if shapes[0] != shapes[1]:
            raise ValueError("there other weights are trained (train.lora)")
        self._average.n_averaged.fill_(state["count"])
        for own, average, saved in zip(
            self._trained, self._average.module, state["trained"], strict=True
        ):
            average.copy_(own)
            own.copy_(saved)


class Checkpoints(HookBase):
    """Saves the run, and ends it there when a signal asked for that.

    A checkpoint holds the state in the middle of a step: after the hooks that stand before this
    one, and before those behind it, the evaluation among them. `MatteTrainer.train` goes on from
    exactly there. So an evaluation that is killed, or that cannot be done, costs no steps, and its
    results come into the records once.

    Must be registered in all processes.

    Args:
        checkpointer: Writes them; only in the first process.
        period: Steps between checkpoints; there is one after the last step, too.
        evaluation_period: Steps between evaluations; there is a checkpoint before each. 0: none.
        max_to_keep: How many to keep, counting those of earlier processes of the run.
    """

    def __init__(
        self,
        checkpointer: MatteCheckpointer,
        period: int,
        evaluation_period: int = 0,
        max_to_keep: int | None = None,
    ):
        self._checkpointer = checkpointer
        self._periods = [number for number in (period, evaluation_period) if number]
        self._max_to_keep = max_to_keep

    def before_step(self) -> None:
        """Forgets that the state is saved."""
        self.trainer.stop.leave = None

    def after_step(self) -> None:
        """Saves if it is time, or asked for.

        Raises:
            RunStopped: The processes agreed to stop.
        """
        done = self.trainer.iter + 1
        due = any(done % period == 0 for period in self._periods) or done == self.trainer.max_iter
        if not due and self.trainer.stop_signal is None:
            return
        self._checkpointer.save_run(self.trainer.iter, self._max_to_keep)
        self.trainer.agree_to_stop()  # all wait here until it is saved
        if self.trainer.stop_signal is not None:
            self._leave(self.trainer.stop_signal)
        self.trainer.stop.leave = self._leave

    def _leave(self, number: int) -> NoReturn:
        raise RunStopped(
            f"Stopped by {signal.Signals(number).name} after step {self.trainer.iter + 1} of "
            f"{self.trainer.max_iter}; all is saved in {self._checkpointer.save_dir}. The same "
            f"command with --resume goes on.",
            exit_status(number),
        )


class BestWeights(HookBase):
    """Keeps the weights of the best evaluation as ``model_best.pth``.

    To be registered behind the evaluation.

    Args:
        checkpointer: Writes them.
        metric: Such as ``AIM-500/box/SAD``; the lowest value is the best.
    """

    def __init__(self, checkpointer: MatteCheckpointer, metric: str):
        self._checkpointer = checkpointer
        self._metric = metric
        self._best = math.inf

    def after_step(self) -> None:
        """Looks at the metric, if the step ended with an evaluation."""
        storage = get_event_storage()
        value, step = storage.latest().get(self._metric, (math.nan, -1))
        if step == storage.iter and value < self._best:
            logger.info("%s is %.4f, the best so far.", self._metric, value)
            self._best = value
            self._checkpointer.save_weights("model_best")

    def after_train(self) -> None:
        """Looks at the last evaluation."""
        self.after_step()

    def state_dict(self) -> dict[str, float]:
        """The best value."""
        return {"best": self._best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes up a state of `state_dict`."""
        self._best = state["best"]


class Records(hooks.PeriodicWriter):
    """Writes the scalars of a run to console, ``metrics.json`` and TensorBoard.

    Of detectron2's writers it makes ones that go on where an earlier process was: the records say
    of each step once what it was, and the values that are smoothed over steps are the same.

    To be registered as the last one, in all processes; only the first one writes.

    Args:
        output_dir: Folder of the run.
        period: Steps between records.
    """

    window = 20  # steps that detectron2's writers smooth over

    def __init__(self, output_dir: str | Path, period: int):
        super().__init__([], period)
        self._output_dir = Path(output_dir)
        self._saved: Mapping[str, Any] = {"last_write": -1, "history": {}}
        self._json: JSONWriter | None = None

    def before_train(self) -> None:
        """Opens the files, without what a checkpoint does not know of."""
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
        line = ProgressLine(self.trainer.max_iter, self._period)
        self._writers = [line, self._json, board]

    def state_dict(self) -> dict[str, Any]:
        """The scalars that the next records depend on."""
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
        """Takes up a state of `state_dict`, for `before_train` to use."""
        self._saved = state


def trim_records(path: Path, last_step: int) -> None:
    """Takes the lines of later steps, and ones that were cut short, out of a JSON-lines file.

    Args:
        path: The file; nothing happens if there is none.
        last_step: The last step whose lines stay.
    """
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


class PictureStrips(HookBase):
    """Shows TensorBoard strips of image, prompt, prediction and truth.

    Args:
        model: The model in training.
        load_batches: Gives test batches; called once, at the first strip.
        prompt: The prompt to show.
        period: Steps between strips.
        weights_in_use: Gives the model the weights to show, for as long as it is entered.
    """

    def __init__(
        self,
        model: SDMatte,
        load_batches: Callable[[], Sequence[Mapping[str, Any]]],
        prompt: str,
        period: int,
        weights_in_use: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self._model = model
        self._load_batches = load_batches
        self._prompt = get_prompt_type(prompt)
        self._period = period
        self._weights_in_use = weights_in_use
        self._batches: Sequence[Mapping[str, Any]] | None = None

    def after_step(self) -> None:
        """Writes the strips every ``period`` steps and at the end."""
        step = self.trainer.iter + 1
        if step % self._period and step != self.trainer.max_iter:
            return
        if self._batches is None:
            self._batches = self._load_batches()
        for batch in self._batches:
            with self._weights_in_use():
                strips = picture_strips(self._model, batch, self._prompt.mask_key)
            for name, strip in strips.items():
                get_event_storage().put_image(f"pictures/{name}", strip)


@torch.no_grad()
def picture_strips(
    model: SDMatte, batch: Mapping[str, Any], aux_input: str
) -> dict[str, torch.Tensor]:
    """Draws strips of image, prompt, prediction and truth.

    Returns:
        ``[3, H, 4 * W]`` in [0, 1] by picture name.
    """
    training = model.training
    model.eval()
    alpha = model(batch, aux_input=aux_input).cpu()
    model.train(training)
    image, prompt, truth = ((batch[key] + 1) / 2 for key in ("image", aux_input, "alpha"))
    columns = [column.expand(-1, 3, -1, -1) for column in (image, prompt, alpha, truth)]
    strips = torch.cat(columns, dim=3)  # [B, 3, H, 4 * W]
    return dict(zip(batch["image_name"], strips, strict=True))
