"""A predictor's network, run by torch; `SDMatte.inference.onnx` runs exported ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size

from SDMatte.images.resize import to_tensor
from SDMatte.modeling import SDMatte
from SDMatte.prompts.maps import Prompt
from SDMatte.prompts.types import PromptType
from SDMatte.runtime.devices import release_memory

_LARGE = 2**20  # pixels of a batch; below, releasing memory costs more time than it is worth

Encoding = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
"""The latent of an image, ``[1, C, h, w]``, and the residuals of the image prior."""


class TorchNetwork:
    """An `SDMatte` model; `OnnxNetwork` has the same attributes and methods.

    Attributes:
        model: The model, in evaluation mode.
        device: Device to run on.
        size_divisor: Divisor of heights and widths.
        trained_prompts: Names of the prompts that the model was trained with.
        if_out_of_memory: Advice for users if memory runs out.
        if_overflow: Advice for users if values overflow.
    """

    if_out_of_memory = (
        "lower resolution or batch_size, or use dtype=bfloat16 or, on a GPU, offload=True"
    )
    if_overflow = "use dtype=float32, or bfloat16 if the device supports it"

    def __init__(self, model: SDMatte, device: Any = None):
        self.model = model.eval()
        self.device = device or next(model.get_submodule("unet").parameters()).device
        self.size_divisor = model.size_divisor
        self.trained_prompts = model.settings.aux_input_list

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.model.get_submodule("unet").parameters()).dtype

    @torch.no_grad()
    def encode(self, image: np.ndarray) -> Encoding:
        """Encode float32 ``[h, w, 3]`` in [0, 1]."""
        tensor = to_tensor(image)[None].to(self.device, non_blocking=True)
        latent = self.model.encode(tensor)  # [1, C, h, w]
        return latent, tuple(self.model.encode_prior(tensor) or ())

    @torch.no_grad()
    def predict(
        self,
        encodings: Sequence[Encoding],
        prompts: Sequence[Prompt],
        kind: PromptType,
        transparent: Sequence[bool],
    ) -> np.ndarray:
        """Predict the mattes of a batch.

        Args:
            encodings: Images of the same size.
            prompts: Their prompts, drawn at that size.
            kind: Type of all prompts.
            transparent: Whether the objects are transparent.

        Returns:
            float32 ``[B, h, w]`` in [0, 1].
        """
        latents, residuals = zip(*encodings, strict=True)
        latent, _ = self.model.predict_latent(
            torch.cat(latents),
            torch.stack([to_tensor(prompt.mask) for prompt in prompts]),
            torch.from_numpy(np.stack([prompt.coords for prompt in prompts])),
            kind,
            is_trans=torch.tensor([int(value) for value in transparent]),
            residuals=[torch.cat(level) for level in zip(*residuals, strict=True)] or None,
        )
        if sum(prompt.mask.size for prompt in prompts) >= _LARGE:
            release_memory()  # before the decoder reaches the peak
        return self.model.decode(latent)[:, 0].cpu().numpy()  # [B, h, w]

    @staticmethod
    def is_out_of_memory(error: Exception) -> bool:
        """Return whether an exception means that memory ran out."""
        return isinstance(error, MemoryError) or should_reduce_batch_size(error)
