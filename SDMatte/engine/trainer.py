"""One training step, and the model with its losses that it runs."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import SDMatte.compat  # noqa: F401

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from SDMatte.errors import DataError
from SDMatte.modeling.losses import DistillationCriterion, MattingCriterion
from SDMatte.modeling.sdmatte import SDMatte, as_dtype


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

    def train(self, mode: bool = True) -> "TrainingModel":
        """Sets the training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Mapping[str, Any], aux_input: str) -> dict[str, torch.Tensor]:
        """Computes the losses of a batch under one kind of prompt, a scalar by name."""
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
        return losses


class MatteTrainer(SimpleTrainer):
    """detectron2's trainer with the prompt mix, accumulation, mixed precision and clipping.

    Args:
        model: A `TrainingModel`, possibly wrapped for several processes.
        data_loader: Endless batches.
        optimizer: Of the model's parameters.
        prompts: What to draw the step's prompt from. All processes draw the same one, from the
            seed and the step's number alone, so that a resumed run draws it again.
        seed: Of that draw.
        accumulate: Batches a step.
        amp_dtype: Type of automatic mixed precision, ``float16`` or ``bfloat16``; None: off.
        clip_grad_norm: Largest norm of all gradients together; None: any.
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
    ):
        super().__init__(model, data_loader, optimizer)
        self.prompts = tuple(prompts)
        self.seed = seed
        self.accumulate = accumulate
        self.amp_dtype = as_dtype(amp_dtype) if amp_dtype is not None else None
        self.clip_grad_norm = clip_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp_dtype == torch.float16
        )

    def draw_prompt(self, step: int) -> str:
        """Names the prompt of a step."""
        random = np.random.default_rng((self.seed, step))
        return self.prompts[random.integers(len(self.prompts))]

    def run_step(self) -> None:
        """Runs one step.

        Raises:
            DataError: A loss is not finite; the message names the pictures.
        """
        prompt = self.draw_prompt(self.iter)
        data_time, totals = 0.0, {}
        self.optimizer.zero_grad()
        for index in range(self.accumulate):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            is_last = index == self.accumulate - 1
            with self._without_reduction(skip=is_last), self._autocast():
                losses = self.model(batch, prompt)
                loss = sum(losses.values()) / self.accumulate
            if not torch.isfinite(loss):
                values = {name: value.item() for name, value in losses.items()}
                raise DataError(
                    f"The loss is not finite at step {self.iter} ({values}), on a batch of "
                    f"{', '.join(batch['image_name'])} with the prompt {prompt}."
                )
            with self._without_reduction(skip=is_last):
                self.scaler.scale(loss).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() / self.accumulate
        self.scaler.unscale_(self.optimizer)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        self._write_metrics(totals, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()

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
        """The state of the run: step, hooks, optimizer, scaler and torch's random state."""
        return {
            **super().state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up a state of `state_dict`."""
        super().load_state_dict(state_dict)
        self.scaler.load_state_dict(state_dict["scaler"])
        torch.set_rng_state(state_dict["rng"])
