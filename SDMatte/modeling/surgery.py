"""Changes that turn Stable Diffusion's U-Net into SDMatte's, on modules and state dicts."""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from SDMatte.errors import ConfigError

COORDINATE_LAYERS = ("bbox_embedding", "point_embedding")
CoordinateInit = Literal["default", "zeros"]


def add_visual_prompt_input(unet: UNet2DConditionModel, factor: int) -> None:
    """Widen `conv_in` and add `aux_conv_in` to a pretrained U-Net, in place.

    The weights of `conv_in` are repeated and rescaled, so that equal latents give the same output
    as before. `aux_conv_in` maps a prompt's latent to visual tokens; its first output channels have
    the weights of the original `conv_in`, the others are zero.

    Args:
        unet: The U-Net, whose input is a single latent.
        factor: Number of latents that the new `conv_in` takes.

    Raises:
        ConfigError: The U-Net is wider than its cross-attention.
    """
    conv, width = unet.conv_in, unet.config.cross_attention_dim
    added = width - conv.out_channels
    if added < 0:
        raise ConfigError(
            f"cross_attention_dim is {width}; it must be at least the width of the U-Net's first "
            f"level, {conv.out_channels}."
        )
    weight, bias = conv.weight.detach(), conv.bias.detach()
    padded = F.pad(weight, (0, 0) * 3 + (0, added))
    unet.aux_conv_in = _make_conv(conv, padded, F.pad(bias, (0, added)))
    unet.conv_in = _make_conv(conv, weight.repeat(1, factor, 1, 1) / factor, bias.clone())
    unet.register_to_config(in_channels=conv.in_channels * factor)


def _make_conv(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    channels = (weight.shape[1], weight.shape[0])
    new = nn.Conv2d(*channels, conv.kernel_size, conv.stride, conv.padding, device="meta")
    new.weight, new.bias = nn.Parameter(weight), nn.Parameter(bias)
    return new


def set_attention_residual(unet: UNet2DConditionModel, value: bool) -> None:
    """Set `residual_connection` of the same attention modules as the reference.

    These are the modules whose `cross_attention_dim` equals the width of the first level: its
    self-attentions. Cross-attentions have the width of the text encoder.
    """
    width = unet.config.block_out_channels[0]
    for module in unet.modules():
        if isinstance(module, Attention) and module.cross_attention_dim == width:
            module.residual_connection = value


def coordinate_weights(
    shapes: Mapping[str, tuple[int, ...]],
    init: CoordinateInit = "default",
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Create the weights of the coordinate embeddings, which Stable Diffusion lacks.

    Args:
        shapes: Shapes of `{bbox,point}_embedding.linear_{1,2}.{weight,bias}`.
        init: `"default"`: initialize the first layer like `torch.nn.Linear` and the last with
            zeros, so that the embedding starts at zero and can learn. `"zeros"`: all zeros, as in
            the reference; only the last bias ever gets a gradient.
        dtype: Type of the tensors.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.zeros(shape, dtype=dtype) for name, shape in sorted(shapes.items())}
    for layer in COORDINATE_LAYERS if init == "default" else ():
        bound = weights[f"{layer}.linear_1.weight"].shape[1] ** -0.5
        for name in (f"{layer}.linear_1.weight", f"{layer}.linear_1.bias"):
            drawn = torch.rand(weights[name].shape, generator=generator) * 2 - 1
            weights[name] = (drawn * bound).to(dtype)
    return weights
