"""LiteSDMatte: the same model with BK-SDM's U-Net and the tiny autoencoder TAESD."""

import torch
from diffusers import AutoencoderTiny

from SDMatte.modeling.sdmatte import SDMatte


class LiteSDMatte(SDMatte):
    """The small model (paper section 4.4); see `SDMatte` for the arguments.

    The pretrained folder is BK-SDM v2 base with TAESD as its ``vae``. Points are drawn three
    times of five in training.
    """

    vae_class = AutoencoderTiny
    default_aux_input_list = ("point_mask", "bbox_mask", "mask", "point_mask", "point_mask")

    @property
    def latent_stride(self) -> int:
        """How many pixels one latent covers in each direction (8 in the published model)."""
        return 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encodes pictures [B, 3, H, W] in [-1, 1] to scaled latents [B, C, h, w]."""
        image = (image + 1) / 2  # [-1, 1] -> [0, 1]
        return self.vae.encode(image.to(self.vae.dtype)).latents * self.vae.config.scaling_factor

    def encode_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """Encodes prompts' maps as pictures."""
        return self.encode(prompt.expand(-1, 3, -1, -1))
