"""The training step, and the model with its losses."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import dropwhile
from typing import Any, NamedTuple

import SDMatte.compat  # noqa: F401

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from SDMatte.data.loader import upload_ahead
from SDMatte.engine.hooks import Checkpoints, WeightAverage
from SDMatte.engine.options import match_layouts
from SDMatte.errors import ConfigError, DataError, RunStopped, SDMatteError, first_line
from SDMatte.modeling.losses import DistillationCriterion, MattingCriterion
from SDMatte.modeling.sdmatte import SDMatte, as_dtype
from SDMatte.prompts.types import PROMPT_TYPES
from SDMatte.runtime.ranks import has_lost_others
from SDMatte.runtime.signals import StopRequest

logger = logging.getLogger(__name__)

MAX_SKIPPED = 20  # steps in a row


class TrainingModel(nn.Module):
    """A model with its losses and, for LiteSDMatte, its teacher.

    Args:
        model: The model to train.
        criterion: The matting losses.
        teacher: A trained model; it is frozen.
        distillation: The loss between the features of model and teacher.
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
        """Set the training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def idle_parameters(self, aux_input: str) -> list[nn.Parameter]:
        """List the trainable parameters that a step with this prompt type does not use."""
        unet = self.model.unet
        is_point = PROMPT_TYPES[aux_input].is_point
        idle = [unet.bbox_embedding if is_point else unet.point_embedding]
        if not self._reads_visual_tokens:
            idle.append(unet.aux_conv_in)
        return [p for part in idle for p in part.parameters() if p.requires_grad]

    def forward(self, batch: Mapping[str, Any], aux_input: str) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch for one prompt type, as scalars by name.

        `idle_parameters` get a zero gradient, because DDP waits for the gradient of every
        parameter unless it searches the graph for unused ones.
        """
        teacher_features = features = None
        if self.teacher is None:
            pred = self.model(batch, aux_input=aux_input)
        else:
            pred, features = self.model(batch, aux_input=aux_input, return_features=True)
            with torch.no_grad():
                _, teacher_features = self.teacher(batch, aux_input=aux_input, return_features=True)
        alpha, trimap = (batch[n].to(pred.device, non_blocking=True) for n in ("alpha", "trimap"))
        losses = self.criterion(pred, (alpha + 1) / 2, trimap)  # alpha: [-1, 1] -> [0, 1]
        if teacher_features is not None:
            losses["distillation_loss"] = self.distillation(features, teacher_features)
        first, empty = next(iter(losses)), (slice(0), ...)
        for parameter in self.idle_parameters(aux_input):
            losses[first] = losses[first] + parameter[empty].sum()  # 0: it sums no elements
        return losses


class _Report(NamedTuple):
    """What a process reports to the others about its part of a step."""

    data_time: float  # seconds spent waiting for data
    batches: list[tuple[list[str], dict[str, float]]]  # image names and losses by name
    stop: int | None  # number of a received stop signal


class MatteTrainer(SimpleTrainer):
    """detectron2's trainer with mixed prompts, accumulation, mixed precision and clipping.

    The randomness of a step depends only on the seed, the step and the rank, so no random state
    needs to be saved. The processes exchange one small report per step, so that all of them make
    the same decision to apply or skip the step, and to stop.

    Args:
        model: A `TrainingModel`, possibly wrapped by DDP.
        data_loader: An endless iterable of batches.
        optimizer: The optimizer of the model's parameters.
        prompts: Prompt types to draw from; all processes draw the same one for a step.
        seed: Seed of the steps.
        accumulate: Batches per step.
        amp_dtype: Type of automatic mixed precision, ``float16`` or ``bfloat16``; None: off.
        clip_grad_norm: Largest norm of all gradients together; None: no clipping.
        non_finite: What to do if a loss or gradient is not finite: ``"stop"`` the run or
            ``"skip"`` the step, up to 20 steps in a row.

    Attributes:
        samples: Samples seen by all processes together.
        stop: Records stop signals.
        stop_signal: The signal on which all processes agreed to stop, or None.
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
    ):
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        super().__init__(model, upload_ahead(data_loader, self.device), optimizer)
        self.task: TrainingModel = getattr(model, "module", model)
        self.prompts = tuple(prompts)
        self.seed = seed
        self.accumulate = accumulate
        self.amp_dtype = as_dtype(amp_dtype) if amp_dtype is not None else None
        self.clip_grad_norm = clip_grad_norm
        self.non_finite = non_finite
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp_dtype == torch.float16
        )
        self.samples = 0
        self.skipped = 0  # steps in a row
        self.stop = StopRequest()
        self.stop_signal: int | None = None

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the steps from ``start_iter`` to ``max_iter``.

        Unlike in detectron2's loop, ``after_train`` of the hooks runs only if all steps succeed:
        after a failure, it would evaluate half-trained weights or wait for a lost process. A
        resumed run first finishes the step of its checkpoint, which is ``start_iter - 1``.

        Raises:
            RunStopped: A signal stopped the run, and the state is saved.
            SDMatteError: The data or the output folder is unusable, a loss is not finite, memory
                ran out, or another process was lost.
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
                cause = self._as_user_error(error)
                if isinstance(cause, RunStopped):
                    logger.warning("%s", cause)
                elif isinstance(cause, SDMatteError):
                    logger.error("%s", cause)
                elif has_lost_others(cause):
                    logger.error("The other processes did not respond at step %d.", self.iter)
                else:
                    logger.exception("The training failed at step %d:", self.iter)
                raise cause from error.__cause__
            finally:
                if hasattr(self._data_loader_iter, "close"):
                    self._data_loader_iter.close()  # ends its workers

    def _finish_step(self, step: int) -> None:
        self.iter = self.storage.iter = step
        rest = list(dropwhile(lambda hook: not isinstance(hook, Checkpoints), self._hooks))[1:]
        for hook in rest:
            hook.after_step()

    def _as_user_error(self, error: BaseException) -> BaseException:
        """Convert an error that users can prevent; return any other error unchanged."""
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            return ConfigError(
                f"Out of memory at step {self.iter}. Lower dataloader.train.batch_size or "
                f"dataloader.train.dataset.size (dataloader.test.* in an evaluation), or set "
                f"train.gradient_checkpointing=True or train.amp.enabled=True."
            )
        # torch can raise the error of a killed loader worker anywhere in a step.
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            return DataError(
                f"{first_line(error)}. The usual cause is a lack of memory: lower "
                f"dataloader.train.num_workers."
            )
        return error

    def _close_writers(self) -> None:
        for hook in self._hooks:
            if isinstance(hook, hooks.PeriodicWriter):
                with suppress(OSError):  # a full disk, which is reported already
                    hook.after_train()

    def draw_prompt(self, step: int) -> str:
        """Return the prompt type of a step."""
        random = np.random.default_rng((self.seed, step))
        return self.prompts[random.integers(len(self.prompts))]

    def run_step(self) -> None:
        """Run one step.

        Raises:
            DataError: A loss or gradient is not finite; the message names the images.
        """
        prompt = self.draw_prompt(self.iter)
        seeds = np.random.SeedSequence((self.seed, self.iter, comm.get_rank()))
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        data_time, names, values = 0.0, [], []
        no_sync = getattr(self.model, "no_sync", nullcontext)  # only DDP has it
        self.optimizer.zero_grad()
        for index in range(self.accumulate):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            is_last = index == self.accumulate - 1
            with nullcontext() if is_last else no_sync():
                with torch.autocast(self.device.type, self.amp_dtype, self.amp_dtype is not None):
                    losses = self.model(batch, prompt)
                    loss = sum(losses.values()) / self.accumulate
                self.scaler.scale(loss).backward()
            values.append(torch.stack([value.detach() for value in losses.values()]))
            names.append(list(batch["image_name"]))
        for parameter in self.task.idle_parameters(prompt):
            parameter.grad = None  # with a zero gradient, the optimizer would still move it
        self.scaler.unscale_(self.optimizer)
        # DDP has averaged the gradients, so their norm is the same in all processes.
        limit = math.inf if self.clip_grad_norm is None else self.clip_grad_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, limit).item()
        by_name = [dict(zip(losses, row, strict=True)) for row in torch.stack(values).tolist()]
        batches = list(zip(names, by_name, strict=True))
        reports = comm.all_gather(_Report(data_time, batches, self.stop.received))
        batches = [batch for report in reports for batch in report.batches]
        self.samples += sum(len(names) for names, _ in batches)
        self.agree_to_stop([report.stop for report in reports])
        problem = self._find_problem(batches, norm)
        if problem is None:
            self.skipped = 0
            self.storage.put_scalar("data_time", max(report.data_time for report in reports))
            self._record([losses for _, losses in batches], norm)
            self.scaler.step(self.optimizer)
        else:
            self._stop_or_skip(problem)
        self.scaler.update()

    def agree_to_stop(self, received: Sequence[int | None] | None = None) -> None:
        """Set `stop_signal` to the first signal received by any process; None: gather them."""
        received = comm.all_gather(self.stop.received) if received is None else received
        self.stop_signal = next((number for number in received if number is not None), None)

    def _find_problem(
        self, batches: Sequence[tuple[list[str], dict[str, float]]], norm: float
    ) -> str | None:
        """Describe a loss or gradient that is not finite; return None if all are finite."""
        bad = [batch for batch in batches if not all(map(math.isfinite, batch[1].values()))]
        if bad:
            what = f"loss is not finite at step {self.iter} ({bad[0][1]})"
        # In float16, gradients overflow until the scaler has lowered its scale. If the scale is
        # below 1, it is not the cause.
        elif not math.isfinite(norm) and not (
            self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        ):
            what = f"gradient is not finite at step {self.iter}, but the loss is"
        else:
            return None
        names = ", ".join(name for names, _ in bad or batches for name in names)
        return f"The {what}. Images: {names}; prompt: {self.draw_prompt(self.iter)}."

    def _stop_or_skip(self, problem: str) -> None:
        self.optimizer.zero_grad()
        if self.non_finite == "stop":
            raise DataError(f"{problem} To skip such steps, set train.non_finite=skip.")
        self.skipped += 1
        if self.skipped > MAX_SKIPPED:
            raise DataError(f"{MAX_SKIPPED} steps in a row were skipped. {problem}")
        logger.warning("%s The step is skipped.", problem)

    def _record(self, losses: Sequence[Mapping[str, float]], norm: float) -> None:
        """Record the norm of the gradient and the mean losses over batches and processes."""
        means = {name: float(np.mean([batch[name] for batch in losses])) for name in losses[0]}
        self.storage.put_scalars(total_loss=sum(means.values()), **means)
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the run: step, hooks, optimizer, scaler and position in the data."""
        return {
            **super().state_dict(),
            "scaler": self.scaler.state_dict(),
            "samples": self.samples,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state from `state_dict`.

        Base learning rate and weight decay keep their configured values, and the learning rate
        follows the schedule of this run. Everything else is restored.

        Raises:
            ValueError: The state belongs to another optimizer, or only one of the two runs has a
                moving average of the weights.
        """
        averaged = WeightAverage.__qualname__ in state_dict.get("hooks", {})
        if averaged != any(isinstance(hook, WeightAverage) for hook in self._hooks):
            raise ValueError(f"train.ema.enabled={averaged}")
        groups = self.optimizer.param_groups
        configured = [(_base_lr(group), group["weight_decay"]) for group in groups]
        super().load_state_dict(state_dict)
        self._set_rates(configured)
        match_layouts(self.optimizer)
        if state_dict["scaler"] and self.scaler.is_enabled():  # else only one run has a scaler
            self.scaler.load_state_dict(state_dict["scaler"])
        self.samples = state_dict["samples"]
        self.skipped = state_dict["skipped"]

    def _set_rates(self, configured: Sequence[tuple[float, float]]) -> None:
        """Set base learning rate and weight decay of each parameter group."""
        changes = {}  # an ordered set: most groups change alike
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
    """Return the learning rate of a parameter group before the schedule's factor."""
    return group.get("initial_lr", group["lr"])
