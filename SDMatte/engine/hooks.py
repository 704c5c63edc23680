"""Training hooks beyond those of detectron2."""

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import SDMatte.compat  # noqa: F401

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from SDMatte.engine.checkpoint import MatteCheckpointer
from SDMatte.errors import RunStopped
from SDMatte.modeling.sdmatte import SDMatte
from SDMatte.prompts.types import get_prompt_type
from SDMatte.runtime.signals import exit_status

logger = logging.getLogger(__name__)


class WeightAverage(HookBase):
    """Keep an exponential moving average (EMA) of the trainable weights.

    The average starts at the weights after the first step.

    Args:
        model: The model in training; its frozen weights are not copied.
        decay: In (0, 1); each step moves the average by ``1 - decay`` towards the weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        self._average = AveragedModel(self._trained, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def after_step(self) -> None:
        """Update the average."""
        self._average.update_parameters(self._trained)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the average into the model for the duration of the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for own, average in zip(self._trained, self._average.module, strict=True):
            own.data, average.data = average.data, own.data

    def state_dict(self) -> dict[str, Any]:
        """Return the training weights; the model in the checkpoint holds the average."""
        return {
            "count": self._average.n_averaged.item(),
            "trained": [parameter.detach() for parameter in self._trained],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state into a model that holds the average, and give it the training weights.

        Raises:
            ValueError: Other weights were trained.
        """
        shapes = [[tuple(p.shape) for p in part] for part in (self._trained, state["trained"])]
        if shapes[0] != shapes[1]:
            raise ValueError("other weights are trained (train.lora)")
        self._average.n_averaged.fill_(state["count"])
        for own, average, saved in zip(
            self._trained, self._average.module, state["trained"], strict=True
        ):
            average.copy_(own)
            own.copy_(saved)


class Checkpoints(HookBase):
    """Save checkpoints, and stop the run after a stop signal.

    A checkpoint holds the state in the middle of a step: after the hooks registered before this
    one and before those registered after it, such as the evaluation. `MatteTrainer.train` resumes
    at exactly that point, so an evaluation that is killed or fails costs no steps, and its results
    are recorded once.

    Register this hook in all processes.

    Args:
        checkpointer: Writes the files, in the main process only.
        period: Steps between checkpoints; the last step always has one.
        evaluation_period: Steps between evaluations, each with a checkpoint before it; 0: none.
        max_to_keep: See `MatteCheckpointer.save_run`.
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
        """Mark the state as not saved."""
        self.trainer.stop.leave = None

    def after_step(self) -> None:
        """Save at the end of a period or after a stop signal.

        Raises:
            RunStopped: The processes agreed to stop.
        """
        done = self.trainer.iter + 1
        due = any(done % period == 0 for period in self._periods) or done == self.trainer.max_iter
        if not due and self.trainer.stop_signal is None:
            return
        self._checkpointer.save_run(self.trainer.iter, self._max_to_keep)
        self.trainer.agree_to_stop()  # also makes all processes wait for the file
        if self.trainer.stop_signal is not None:
            self._leave(self.trainer.stop_signal)
        self.trainer.stop.leave = self._leave

    def _leave(self, number: int) -> NoReturn:
        raise RunStopped(
            f"Stopped by {signal.Signals(number).name} after step {self.trainer.iter + 1} of "
            f"{self.trainer.max_iter}; everything is saved in {self._checkpointer.save_dir}. To "
            "resume, repeat the command; train needs --resume.",
            exit_status(number),
        )


class BestWeights(HookBase):
    """Save the weights of the evaluation with the lowest ``metric`` as ``model_best.pth``.

    Register this hook after the evaluation.
    """

    def __init__(self, checkpointer: MatteCheckpointer, metric: str):
        self._checkpointer = checkpointer
        self._metric = metric
        self._best = math.inf

    def after_step(self) -> None:
        """Compare the metric if the step ended with an evaluation."""
        storage = get_event_storage()
        value, step = storage.latest().get(self._metric, (math.nan, -1))
        if step == storage.iter and value < self._best:
            logger.info("%s is %.4f, the best so far.", self._metric, value)
            self._best = value
            self._checkpointer.save_weights("model_best")

    after_train = after_step  # for the last evaluation

    def state_dict(self) -> dict[str, float]:
        """Return the best value."""
        return {"best": self._best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Load a state from `state_dict`."""
        self._best = state["best"]


class ImageStrips(HookBase):
    """Write strips of image, prompt, prediction and ground truth to TensorBoard.

    Args:
        model: The model in training.
        load_batches: Returns test batches; called once, before the first strip.
        prompt: The prompt type to show.
        period: Steps between strips.
        weights_in_use: See `MatteCheckpointer`.
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
        self._mask_key = get_prompt_type(prompt).mask_key
        self._period = period
        self._weights_in_use = weights_in_use
        self._batches: Sequence[Mapping[str, Any]] | None = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Write the strips at the end of each period and of the run."""
        step = self.trainer.iter + 1
        if step % self._period and step != self.trainer.max_iter:
            return
        if self._batches is None:
            self._batches = self._load_batches()
        for batch in self._batches:
            training = self._model.training
            with self._weights_in_use():
                alpha = self._model.eval()(batch, aux_input=self._mask_key).cpu()
            self._model.train(training)
            images = ((batch[key] + 1) / 2 for key in ("image", self._mask_key, "alpha"))
            image, prompt, truth = images  # [-1, 1] -> [0, 1]
            columns = [column.expand(-1, 3, -1, -1) for column in (image, prompt, alpha, truth)]
            strips = torch.cat(columns, dim=3)  # [B, 3, H, 4 * W]
            for name, strip in zip(batch["image_name"], strips, strict=True):
                get_event_storage().put_image(f"images/{name}", strip)
