"""One training step, and the model with its losses that it runs."""

import contextlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Any

import SDMatte.compat  # noqa: F401

import numpy as np
import torch
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from SDMatte.engine.hooks import Checkpoints, WeightAverage
from SDMatte.engine.options import match_layouts
from SDMatte.errors import DataError, RunStopped, SDMatteError
from SDMatte.modeling.losses import DistillationCriterion, MattingCriterion
from SDMatte.modeling.sdmatte import SDMatte, as_dtype
from SDMatte.prompts.types import PROMPT_TYPES
from SDMatte.runtime.launch import has_lost_others
from SDMatte.runtime.signals import StopRequest, time_limit

logger = logging.getLogger(__name__)

MOST_SKIPPED = 20


class TrainingModel(nn.Module):
    """A model with what only training needs: true alpha in, losses out.

    Args:
        model: The model to train.
        criterion: The matting losses.
        teacher: A frozen, trained model to learn from, for LiteSDMatte.
        distillation: The loss between both models' features.
    """

    def __init__(
        self,
        model: SDMatte,
        criterion: MattingCriterion,
        teacher: SDMatte | None = None,
        distillation: DistillationCriterion | None = None,
    ):
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.teacher = teacher.requires_grad_(False) if teacher is not None else None
        self.distillation = distillation
        processors = model.unet.attn_processors.values()
        self._reads_visual_tokens = any(processor.visual for processor in processors)

    def train(self, mode: bool = True) -> "TrainingModel":
        """Sets the training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def idle_parameters(self, aux_input: str) -> list[nn.Parameter]:
        """Lists what is trained and has no part in a step with one kind of prompt."""
        unet = self.model.unet
        is_point = PROMPT_TYPES[aux_input].is_point
        idle = [unet.bbox_embedding if is_point else unet.point_embedding]
        if not self._reads_visual_tokens:
            idle.append(unet.aux_conv_in)
        return [p for part in idle for p in part.parameters() if p.requires_grad]

    def forward(self, batch: Mapping[str, Any], aux_input: str) -> dict[str, torch.Tensor]:
        """Computes the losses of a batch under one kind of prompt, a scalar by name.

        `idle_parameters` get a gradient of zeros, because DDP waits for one of every parameter
        (unless it searches the graph in every step for those that it need not wait for).
        """
        taught = features = None
        if self.teacher is None:
            pred = self.model(batch, aux_input=aux_input)
        else:
            pred, features = self.model(batch, aux_input=aux_input, return_features=True)
            with torch.no_grad():
                _, taught = self.teacher(batch, aux_input=aux_input, return_features=True)
        label = (batch["alpha"].to(pred.device) + 1) / 2  # [-1, 1] -> [0, 1]
        losses = self.criterion(pred, label, batch["trimap"].to(pred.device))
        if taught is not None:
            losses["distillation_loss"] = self.distillation(features, taught)
        first, nothing = next(iter(losses)), (slice(0), ...)
        for parameter in self.idle_parameters(aux_input):
            losses[first] = losses[first] + parameter[nothing].sum()  # of no elements: 0
        return losses


def _as_data_error(error: BaseException) -> BaseException:
    """Says in a sentence that a loader's worker is gone; torch says it in the midst of a step."""
    message = str(error)
    if isinstance(error, RuntimeError) and message.startswith("DataLoader worker"):
        return DataError(
            f"{message.splitlines()[0].strip()} Most often the memory is short: a smaller "
            f"dataloader.train.num_workers needs less."
        )
    return error


@dataclass
class _Report:
    """What a process tells the others of its part of a step.

    Attributes:
        data_time: Seconds that it waited for data.
        names: Of the pictures, batch by batch.
        losses: Of each batch, by name.
        stop: The number of a signal that asks to stop.
    """

    data_time: float = 0.0
    names: list[list[str]] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)
    stop: int | None = None

    def spoiled(self) -> list[tuple[list[str], dict[str, float]]]:
        """Pictures and losses of the batches of which a loss is not finite."""
        return [
            (names, losses)
            for names, losses in zip(self.names, self.losses, strict=True)
            if not all(map(math.isfinite, losses.values()))
        ]


class MatteTrainer(SimpleTrainer):
    """detectron2's trainer with the prompt mix, accumulation, mixed precision and clipping.

    All that is random in a step follows from the seed, the step's number and the process, so that
    no random state needs to be saved. The processes exchange one small report a step; from it all
    of them know alike whether the step counts and whether to stop.

    Args:
        model: A `TrainingModel`, possibly wrapped by DDP.
        data_loader: Endless batches.
        optimizer: Of the model's parameters.
        prompts: What to draw the step's prompt from; all processes draw the same one.
        seed: Of all that is random in the steps.
        accumulate: Batches a step.
        amp_dtype: Type of automatic mixed precision, ``float16`` or ``bfloat16``; None: off.
        clip_grad_norm: Largest norm of all gradients together; None: any.
        non_finite: What happens when a loss or a gradient is not finite: ``"stop"`` ends the run,
            ``"skip"`` leaves the weights as they are in that step, up to 20 steps in a row.
        patience: After so many seconds a batch that this process itself prepares counts as
            hanging; 0: never. (A loader's workers have a time limit of their own.)

    Attributes:
        samples: Samples that all processes together have had.
        stop: Where a stop signal is noted.
        stop_signal: The signal that all processes agreed to stop for; None: go on.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        prompts: Sequence[str],
        seed: int = 0,
        accumulate: int = 1,
        amp_dtype: torch.dtype | str | None = None,
        clip_grad_norm: float | None = None,
        non_finite: str = "stop",
        patience: float = 0,
    ):
        super().__init__(model, data_loader, optimizer)
        self.task: TrainingModel = getattr(model, "module", model)
        self.prompts = tuple(prompts)
        self.seed = seed
        self.accumulate = accumulate
        self.amp_dtype = as_dtype(amp_dtype) if amp_dtype is not None else None
        self.clip_grad_norm = clip_grad_norm
        self.non_finite = non_finite
        self.patience = patience
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp_dtype == torch.float16
        )
        self.samples = 0
        self.skipped = 0  # steps in a row
        self.stop = StopRequest()
        self.stop_signal: int | None = None

    def train(self, start_iter: int, max_iter: int) -> None:
        """Runs the steps from ``start_iter`` to ``max_iter``.

        detectron2's loop, but that the hooks' ``after_train`` runs only at the end of the last
        step: its own runs it after a failure, too, where an evaluation would report half-trained
        weights, or wait for a process that is gone. And a run that goes on from a checkpoint first
        does what stood behind the checkpoint in its step.

        Args:
            start_iter: The step to begin with: 0, or the one after that of the state loaded.
            max_iter: Steps of the run.

        Raises:
            RunStopped: A signal asked to stop, and the state is saved.
            SDMatteError: The data or the output folder cannot be used, a loss is not finite, or
                another process is gone.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage, self.stop.listen():
            try:
                self.before_train()
                if start_iter > 0:
                    self._finish_step(start_iter - 1)
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max_iter
                self.after_train()
            except BaseException as error:
                self._close_writers()
                cause = _as_data_error(error)
                if isinstance(cause, RunStopped):
                    logger.warning("%s", cause)
                elif isinstance(cause, SDMatteError):
                    logger.error("%s", cause)
                elif has_lost_others(cause):
                    logger.error("No answer from the other processes at step %d.", self.iter)
                else:
                    logger.exception("The training failed at step %d:", self.iter)
                raise cause from error.__cause__
            finally:
                if hasattr(self._data_loader_iter, "close"):
                    self._data_loader_iter.close()  # ends its workers

    def _finish_step(self, step: int) -> None:
        self.iter = self.storage.iter = step
        behind = dropwhile(lambda hook: not isinstance(hook, Checkpoints), self._hooks)
        for hook in list(behind)[1:]:
            hook.after_step()

    def _close_writers(self) -> None:
        for hook in self._hooks:
            if isinstance(hook, hooks.PeriodicWriter):
                with contextlib.suppress(OSError):  # a full disk; it has been reported
                    hook.after_train()

    def draw_prompt(self, step: int) -> str:
        """Names the prompt of a step."""
        random = np.random.default_rng((self.seed, step))
        return self.prompts[random.integers(len(self.prompts))]

    def run_step(self) -> None:
        """Runs one step.

        Raises:
            DataError: A loss or a gradient is not finite; the message names the pictures.
        """
        prompt = self.draw_prompt(self.iter)
        seeds = np.random.SeedSequence((self.seed, self.iter, comm.get_rank()))
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        report, values = _Report(), []
        self.optimizer.zero_grad()
        for index in range(self.accumulate):
            start = time.perf_counter()
            with time_limit(self.patience, self._describe_wait):
                batch = next(self._data_loader_iter)
            report.data_time += time.perf_counter() - start
            with self._without_reduction(skip=index == self.accumulate - 1):
                with self._autocast():
                    losses = self.model(batch, prompt)
                    loss = sum(losses.values()) / self.accumulate
                self.scaler.scale(loss).backward()
            values.append(torch.stack([value.detach() for value in losses.values()]))
            report.names.append(list(batch["image_name"]))
        for parameter in self.task.idle_parameters(prompt):
            parameter.grad = None  # with one of zeros the optimizer would decay and move it
        self.scaler.unscale_(self.optimizer)
        # The gradients, and so their norm, are the same in all processes: DDP has averaged them.
        limit = math.inf if self.clip_grad_norm is None else self.clip_grad_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, limit).item()
        report.losses = [dict(zip(losses, v, strict=True)) for v in torch.stack(values).tolist()]
        report.stop = self.stop.received
        reports = comm.all_gather(report)
        self.samples += sum(len(names) for report in reports for names in report.names)
        self.agree_to_stop([report.stop for report in reports])
        problem = self._find_problem(reports, norm, prompt)
        if problem is None:
            self.skipped = 0
            self._record(reports, norm)
            self.scaler.step(self.optimizer)
        else:
            self._refuse(problem)
        self.scaler.update()

    def _describe_wait(self) -> str:
        files = ", ".join(self.data_loader.dataset.being_made())
        waited = f"{self.patience:g} s (timeout)"
        return f"The loader gave no batch for {waited}, while it made samples of {files}."

    def agree_to_stop(self, received: Sequence[int | None] | None = None) -> None:
        """Sets `stop_signal` to the first signal that any process received.

        Args:
            received: The signals of all processes; None: ask them.
        """
        received = comm.all_gather(self.stop.received) if received is None else received
        self.stop_signal = next((number for number in received if number is not None), None)

    def _find_problem(self, reports: Sequence[_Report], norm: float, prompt: str) -> str | None:
        """Says what is not finite in a step, and where it came from."""
        spoiled = [batch for report in reports for batch in report.spoiled()]
        if spoiled:
            names = [name for batch in spoiled for name in batch[0]]
            what = f"loss is not finite at step {self.iter} ({spoiled[0][1]})"
        # With float16 single gradients overflow, and the scaler lowers its scale until they do
        # not; at a scale below 1 it is not the scale.
        elif not math.isfinite(norm) and not (
            self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        ):
            names = [name for report in reports for batch in report.names for name in batch]
            what = f"gradient is not finite at step {self.iter}, though the loss is"
        else:
            return None
        return f"The {what}, on a batch of {', '.join(names)} with the prompt {prompt}."

    def _refuse(self, problem: str) -> None:
        self.optimizer.zero_grad()
        if self.non_finite == "stop":
            raise DataError(f"{problem} train.non_finite=skip would leave such steps out.")
        self.skipped += 1
        if self.skipped > MOST_SKIPPED:
            raise DataError(f"{MOST_SKIPPED} steps in a row were skipped. {problem}")
        logger.warning("%s The step is skipped.", problem)

    def _record(self, reports: Sequence[_Report], norm: float) -> None:
        """Puts the means over all batches and processes into the records."""
        batches = [losses for report in reports for losses in report.losses]
        means = {name: float(np.mean([b[name] for b in batches])) for name in batches[0]}
        scalars = {"total_loss": sum(means.values()), **means}
        if math.isfinite(norm):
            scalars["grad_norm"] = norm
        self.storage.put_scalar("data_time", max(report.data_time for report in reports))
        self.storage.put_scalars(**scalars)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)

    def _without_reduction(self, skip: bool) -> contextlib.AbstractContextManager:
        """Keeps DDP from exchanging gradients before the last batch of a step."""
        if skip or not hasattr(self.model, "no_sync"):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """The state of the run: step, hooks, optimizer, scaler and place in the data."""
        return {
            **super().state_dict(),
            "scaler": self.scaler.state_dict(),
            "samples": self.samples,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`.

        Base learning rate and weight decay are those of the config in force, and the learning rate
        is what the schedule of this run makes of it; all else is as it was saved.

        Raises:
            ValueError: It is of a run with another optimizer, or with an average of the weights
                where here is none, or the other way round.
        """
        averaged = WeightAverage.__qualname__ in state_dict.get("hooks", {})
        if averaged != any(isinstance(hook, WeightAverage) for hook in self._hooks):
            raise ValueError(f"it was trained with train.ema.enabled={averaged}")
        groups = self.optimizer.param_groups
        configured = [(_base_lr(group), group["weight_decay"]) for group in groups]
        super().load_state_dict(state_dict)
        self._set_rates(configured)
        match_layouts(self.optimizer)
        if state_dict["scaler"] and self.scaler.is_enabled():  # else one begins, or has ended, here
            self.scaler.load_state_dict(state_dict["scaler"])
        self.samples = state_dict["samples"]
        self.skipped = state_dict["skipped"]

    def _set_rates(self, configured: Sequence[tuple[float, float]]) -> None:
        """Set base learning rate and weight decay of each group of parameters, from here on."""
        changes = {}  # in order, and each once: most groups change alike
        groups = self.optimizer.param_groups
        for group, (lr, decay) in zip(groups, configured, strict=True):
            before = {"lr": _base_lr(group), "weight_decay": group["weight_decay"]}
            for name, value in (("lr", lr), ("weight_decay", decay)):
                if before[name] != value:
                    changes[f"optimizer.{name} was {before[name]:g} and is {value:g}"] = True
            group.update(lr=lr, initial_lr=lr, weight_decay=decay)
        for hook in self._hooks:
            if isinstance(hook, hooks.LRScheduler):
                hook.scheduler.base_lrs = [lr for lr, _ in configured]
                for group, lr in zip(groups, hook.scheduler.get_lr(), strict=True):
                    group["lr"] = lr
        if changes:
            logger.warning("From step %d on, %s.", self.iter + 2, "; ".join(changes))


def _base_lr(group: Mapping[str, Any]) -> float:
    """The learning rate of a group of parameters before the schedule's factor."""
    return group.get("initial_lr", group["lr"])
