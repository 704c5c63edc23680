"""Changes that turn Stable Diffusion's U-Net into SDMatte's, on modules and state dicts."""

from collections.abc import Mapping
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from SDMatte.errors import ConfigError

COORDINATE_LAYERS = ("bbox_embedding", "point_embedding")
CoordinateInit = Literal["default", "zeros"]


def add_visual_prompt_input(unet: UNet2DConditionModel, factor: int) -> None:
    """Widen `conv_in` and add `aux_conv_in` to a pretrained U-Net, in place.

    Args:
        unet: The U-Net, whose input is a single latent.
        factor: Number of latents that the new `conv_in` takes.

    Raises:
        ConfigError: The U-Net is wider than its cross-attention.
    """
    original = unet.conv_in
    unet.aux_conv_in = make_aux_conv_in(original, unet.config.cross_attention_dim)
    unet.conv_in = widen_conv_in(original, factor)
    unet.register_to_config(in_channels=original.in_channels * factor)


def widen_conv_in(conv: nn.Conv2d, factor: int) -> nn.Conv2d:
    """Repeat the input channels of a convolution such that equal inputs give the same output."""
    weight = conv.weight.detach().repeat(1, factor, 1, 1) / factor
    return _make_conv(conv, weight, conv.bias.detach().clone())


def make_aux_conv_in(conv: nn.Conv2d, out_channels: int) -> nn.Conv2d:
    """Create the convolution that maps a prompt's latent to visual tokens.

    The first output channels are copied from the pretrained `conv_in`; the others are zero.

    Args:
        conv: The *original* first convolution of the U-Net.
        out_channels: `cross_attention_dim` of the U-Net.

    Raises:
        ConfigError: The U-Net is wider than its cross-attention.
    """
    if out_channels < conv.out_channels:
        raise ConfigError(
            f"cross_attention_dim is {out_channels}; it must be at least the width of the U-Net's "
            f"first level, {conv.out_channels}."
        )
    weight = conv.weight.new_zeros(out_channels, *conv.weight.shape[1:])
    bias = conv.bias.new_zeros(out_channels)
    weight[: conv.out_channels] = conv.weight.detach()
    bias[: conv.out_channels] = conv.bias.detach()
    return _make_conv(conv, weight, bias)


def _make_conv(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    channels = (weight.shape[1], weight.shape[0])
    new = nn.Conv2d(*channels, conv.kernel_size, conv.stride, conv.padding, device="meta")
    new.weight, new.bias = nn.Parameter(weight), nn.Parameter(bias)
    return new


def set_attention_residual(unet: UNet2DConditionModel, value: bool) -> None:
    """Set the residual flag of the same attention modules as the reference.

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
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Create the weights of the coordinate embeddings, which Stable Diffusion lacks.

    Args:
        shapes: Shapes of `{bbox,point}_embedding.linear_{1,2}.{weight,bias}`.
        init: `"default"`: the first layer as `torch.nn.Linear` initializes it, the last one zero;
            the embedding starts at zero and learns. `"zeros"`: as the reference, where only the
            last bias ever gets a gradient.
        dtype: Type of the tensors.
        seed: Seed of the random weights.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.zeros(shape, dtype=dtype) for name, shape in sorted(shapes.items())}
    if init == "default":
        for layer in COORDINATE_LAYERS:
            bound = weights[f"{layer}.linear_1.weight"].shape[1] ** -0.5
            for name in (f"{layer}.linear_1.weight", f"{layer}.linear_1.bias"):
                drawn = torch.rand(weights[name].shape, generator=generator) * 2 - 1
                weights[name] = (drawn * bound).to(dtype)
    return weights
