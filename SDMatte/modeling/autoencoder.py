"""diffusers' autoencoder with less work, less memory and more digits."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn


class UpsampleConv(nn.Module):
    """Doubles a map by nearest and convolves it 3 x 3, as diffusers' `Upsample2D` does.

    Of the nine pixels that an output pixel reads, those that were copied from the same one are
    equal. So each of the four outputs that lie on one input pixel is a 2 x 2 convolution of the
    small map, with sums of the weights: 16 products for these four in place of 36. That is the
    same up to rounding. On GPUs it has not been measured; there the map is doubled.

    Args:
        conv: The convolution, 3 x 3 with padding 1.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Gives ``[B, D, 2 h, 2 w]`` of ``[B, C, h, w]``."""
        if hidden_states.device.type != "cpu":
            return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))
        height, width = hidden_states.shape[-2:]
        weight = self.conv.weight
        result = torch.empty(
            (len(hidden_states), weight.shape[0], 2 * height, 2 * width),
            dtype=weight.dtype,
            device=weight.device,
            memory_format=torch.channels_last,
        )
        for y, rows in enumerate(_halves(weight.float(), dim=2)):
            for x, kernel in enumerate(_halves(rows, dim=3)):
                kernel = kernel.to(weight.dtype, memory_format=torch.channels_last)
                part = F.conv2d(hidden_states, kernel, self.conv.bias, padding=1)
                result[..., y::2, x::2] = part[..., y : y + height, x : x + width]
        return result


def _halves(weight: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of the first and the second of two rows (or columns) that lie on one."""
    before, middle, after = weight.split(1, dim)
    return torch.cat([before, middle + after], dim), torch.cat([before + middle, after], dim)


class FrugalSiLU(nn.SiLU):
    """SiLU that overwrites its input where nobody needs that for a gradient.

    Its input is always a norm's fresh output here. At 1024 x 1024 that saves the decoder's largest
    map, half a gigabyte in bfloat16.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Gives a map of the same shape."""
        return F.silu(input, inplace=not torch.is_grad_enabled())


class ExactGroupNorm(nn.GroupNorm):
    """GroupNorm that keeps its digits in float32 and channels_last.

    torch adds up a whole group in one go there, which costs four digits at 1024 x 1024: an error of
    2e-4 where it is 2e-6 in the usual layout. Here rows are added up first.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises ``[B, C, H, W]``."""
        usual = input.ndim != 4 or input.is_contiguous() or input.device.type != "cpu"
        if usual or input.dtype != torch.float32 or torch.is_grad_enabled():
            return super().forward(input)
        pixels = input.permute(0, 2, 3, 1)  # [B, H, W, C]
        sums = pixels.sum(2).double().sum(1)  # [B, C]
        squares = torch.linalg.vector_norm(pixels, dim=2).double().square().sum(1)
        count = input[0].numel() // self.num_groups
        per_group = (len(input), self.num_groups, -1)
        mean = sums.view(per_group).sum(2, keepdim=True) / count  # [B, G, 1]
        variance = squares.view(per_group).sum(2, keepdim=True) / count - mean.square()
        scale = (variance + self.eps).rsqrt() * self.weight.view(self.num_groups, -1)
        shift = self.bias.view(self.num_groups, -1) - mean * scale
        scale, shift = (v.float().flatten(1)[..., None, None] for v in (scale, shift))
        return torch.addcmul(shift, input, scale)


def improve(vae: AutoencoderKL) -> None:
    """Puts the modules above into an autoencoder, in place; the names of the weights stay."""
    for block in vae.decoder.up_blocks:
        if block.upsamplers is not None:
            block.upsamplers = nn.ModuleList(UpsampleConv(up.conv) for up in block.upsamplers)
    _replace(vae, nn.SiLU, lambda silu: FrugalSiLU())
    # Not in the encoder: it keeps the usual layout, and bands.CountedRows sees to its norms.
    _replace(vae.decoder, nn.GroupNorm, _exact)


def _replace(root: nn.Module, kind: type[nn.Module], make: Callable) -> None:
    for module in list(root.modules()):
        for name, child in module.named_children():
            if type(child) is kind:
                setattr(module, name, make(child))


def _exact(plain: nn.GroupNorm) -> ExactGroupNorm:
    norm = ExactGroupNorm(plain.num_groups, plain.num_channels, plain.eps, device="meta")
    norm.weight, norm.bias = plain.weight, plain.bias
    return norm
