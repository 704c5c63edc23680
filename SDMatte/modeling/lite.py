"""LiteSDMatte: SDMatte with BK-SDM's U-Net and the tiny autoencoder TAESD (paper, Sec. 4.4)."""

import torch
from diffusers import AutoencoderTiny

from SDMatte.modeling.sdmatte import SDMatte
from SDMatte.modeling.settings import ModelSettings, PromptMix

PROMPT_MIX = ("point_mask", "bbox_mask", "mask", "point_mask", "point_mask")
"""Prompts to draw from in training: points three times in five."""


class LiteSettings(ModelSettings):
    """Settings of `LiteSDMatte`, with another default prompt mix."""

    aux_input_list: PromptMix = PROMPT_MIX


class LiteSDMatte(SDMatte):
    """The lightweight variant of `SDMatte`, with the same arguments.

    The pretrained folder is BK-SDM v2 base with TAESD as its `vae`.
    """

    vae_class = AutoencoderTiny
    settings_class = LiteSettings

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images `[B, 3, H, W]` in [-1, 1] to scaled latents `[B, C, h, w]`."""
        image = self.to_vae_range(image).to(self.vae.dtype, memory_format=torch.channels_last)
        return self.vae.encode(image).latents * self.vae.config.scaling_factor

    def to_vae_range(self, image: torch.Tensor) -> torch.Tensor:
        """Scale images in [-1, 1] to [0, 1], as the reference does."""
        return (image + 1) / 2
