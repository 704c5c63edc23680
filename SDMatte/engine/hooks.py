"""Periodic work of a training that detectron2 has no hook for."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage

from SDMatte.modeling.sdmatte import SDMatte
from SDMatte.prompts import get_prompt_type

logger = logging.getLogger(__name__)


class PictureStrips(HookBase):
    """Shows TensorBoard strips of image, prompt, prediction and truth.

    Args:
        model: The model in training.
        load_batch: Gives a test batch; called once, at the first strip.
        prompt: The prompt to show.
        period: Steps between strips.
    """

    def __init__(
        self,
        model: SDMatte,
        load_batch: Callable[[], Mapping[str, Any]],
        prompt: str,
        period: int,
    ):
        self._model = model
        self._load_batch = load_batch
        self._prompt = get_prompt_type(prompt)
        self._period = period
        self._batch: Mapping[str, Any] | None = None

    def after_step(self) -> None:
        """Writes the strips every ``period`` steps and at the end."""
        step = self.trainer.iter + 1
        if step % self._period and step != self.trainer.max_iter:
            return
        if self._batch is None:
            self._batch = self._load_batch()
        for name, strip in picture_strips(self._model, self._batch, self._prompt.mask_key).items():
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
