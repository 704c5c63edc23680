"""Edits that turn a Stable Diffusion into SDMatte: on modules and on state dicts, no files."""

from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn

from SDMatte.errors import ConfigError

COORDINATE_LAYERS = ("bbox_embedding", "point_embedding")


def widen_conv_in(conv: nn.Conv2d, factor: int) -> nn.Conv2d:
    """Repeats a convolution's input channels so that equal inputs give the same output.

    Args:
        conv: The U-Net's first convolution, C input channels.
        factor: How many latents are laid side by side.

    Returns:
        A new convolution with ``factor * C`` input channels, its weight divided by ``factor``.
    """
    wide = nn.Conv2d(
        conv.in_channels * factor,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        device="meta",
    )
    wide.weight = nn.Parameter(conv.weight.detach().repeat(1, factor, 1, 1) / factor)
    wide.bias = nn.Parameter(conv.bias.detach().clone())
    return wide


def make_aux_conv_in(conv: nn.Conv2d, out_channels: int) -> nn.Conv2d:
    """Makes the convolution that turns a prompt's latent into visual tokens.

    Its first output channels are the pretrained ``conv_in``, the others start at zero.

    Args:
        conv: The U-Net's *original* first convolution.
        out_channels: The U-Net's ``cross_attention_dim``.

    Raises:
        ConfigError: The U-Net is wider than its cross-attention.
    """
    if out_channels < conv.out_channels:
        raise ConfigError(
            f"cross_attention_dim is {out_channels}, but the visual prompt needs at least the "
            f"U-Net's first width, {conv.out_channels}."
        )
    aux = nn.Conv2d(
        conv.in_channels,
        out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        device="meta",
    )
    weight = conv.weight.new_zeros(aux.weight.shape)
    bias = conv.bias.new_zeros(out_channels)
    weight[: conv.out_channels] = conv.weight.detach()
    bias[: conv.out_channels] = conv.bias.detach()
    aux.weight, aux.bias = nn.Parameter(weight), nn.Parameter(bias)
    return aux


def add_visual_prompt_input(unet: UNet2DConditionModel, factor: int) -> None:
    """Gives a pretrained U-Net its second input and the visual tokens' convolution, in place."""
    original = unet.conv_in
    unet.aux_conv_in = make_aux_conv_in(original, unet.config.cross_attention_dim)
    unet.conv_in = widen_conv_in(original, factor)
    unet.register_to_config(in_channels=original.in_channels * factor)


def set_attention_residual(unet: UNet2DConditionModel, value: bool) -> None:
    """Set the attention modules' own residual flag where the reference does.

    Those are the modules whose ``cross_attention_dim`` equals the width of the first level: its
    self-attentions. Cross-attentions have the text encoder's width.
    """
    width = unet.config.block_out_channels[0]
    for module in unet.modules():
        if isinstance(module, Attention) and module.cross_attention_dim == width:
            module.residual_connection = value


def coordinate_weights(
    shapes: Mapping[str, tuple[int, ...]],
    init: str = "default",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Makes the eight tensors of the coordinate embeddings that a Stable Diffusion lacks.

    Args:
        shapes: Shape by name, for ``{bbox,point}_embedding.linear_{1,2}.{weight,bias}``.
        init: ``"default"``: the first layer as `torch.nn.Linear` draws it, the last one zero; the
            embedding starts as nothing and learns. ``"zeros"``: the reference's, with which only
            the last bias ever gets a gradient.
        dtype: Of the tensors, the pretrained weights' own.
        seed: Of the draw.

    Raises:
        ConfigError: Unknown ``init``.
    """
    if init not in ("default", "zeros"):
        raise ConfigError(f"init is 'default' or 'zeros'; got {init!r}.")
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.zeros(shape, dtype=dtype) for name, shape in sorted(shapes.items())}
    if init == "default":
        for layer in COORDINATE_LAYERS:
            weight = weights[f"{layer}.linear_1.weight"]
            bound = weight.shape[1] ** -0.5
            for name in (f"{layer}.linear_1.weight", f"{layer}.linear_1.bias"):
                drawn = torch.rand(weights[name].shape, generator=generator) * 2 - 1
                weights[name] = (drawn * bound).to(dtype)
    return weights
