"""A pretrained image encoder that guides a small U-Net.

The paper builds on Stable Diffusion, whose U-Net knows what objects look like. A U-Net of a few
million parameters has no such prior, so it borrows one from an image classifier: the encoder's
feature maps are added to the hidden states of the down blocks, as diffusers' T2I-Adapter does. This
is not part of the paper and is disabled in the published models.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from SDMatte.errors import ConfigError


class ImagePrior(nn.Module):
    """Compute residuals for a U-Net's down blocks from an image.

    Args:
        name: Image classification model of timm, such as `tf_efficientnet_lite0`. Its weights are
            part of the checkpoint and are not downloaded.
        unet_config: Config of the U-Net.
        latent_stride: Image pixels per latent pixel in each direction.

    Raises:
        ConfigError: timm has no such model, or the model lacks features at a stride of the U-Net.
    """

    def __init__(self, name: str, unet_config: Mapping[str, Any], latent_stride: int):
        super().__init__()
        import timm  # slow to import, and not used by the published models

        if not timm.is_model(name):
            raise ConfigError(f"model.image_prior: timm has no model {name!r}.")
        self.encoder = timm.create_model(name, features_only=True, pretrained=False)
        config = timm.get_pretrained_cfg(name)
        self._normalization = [torch.tensor(values) for values in (config.mean, config.std)]
        info = self.encoder.feature_info
        channels = dict(zip(info.reduction(), info.channels(), strict=True))
        kinds, widths = unet_config["down_block_types"], unet_config["block_out_channels"]
        strides = [latent_stride * 2**level for level in range(len(kinds))]
        if not set(strides) <= channels.keys():
            raise ConfigError(
                f"model.image_prior: {name} has features at strides {list(channels)}; this U-Net "
                f"needs {strides}."
            )
        self._indices = [list(channels).index(stride) for stride in strides]
        groups = unet_config["norm_num_groups"]
        self.projections = nn.ModuleList()
        for kind, width, stride in zip(kinds, widths, strides, strict=True):
            # diffusers adds the residual of a block without attention after its downsampling.
            step = 1 if "CrossAttn" in kind or stride == strides[-1] else 2
            self.projections.append(
                nn.Sequential(
                    nn.Conv2d(channels[stride], width, step, stride=step),
                    nn.GroupNorm(groups, width),
                    nn.SiLU(),
                    nn.Conv2d(width, width, 1),
                )
            )

    def train(self, mode: bool = True) -> "ImagePrior":
        """Set the training mode; the encoder keeps the statistics of its batch norms."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return a residual for each down block from images `[B, 3, H, W]` in [-1, 1]."""
        mean, std = (value.to(image)[:, None, None] for value in self._normalization)
        features = self.encoder(((image + 1) / 2 - mean) / std)  # [-1, 1] -> timm's range
        chosen = [features[index] for index in self._indices]
        return [project(value) for project, value in zip(self.projections, chosen, strict=True)]
