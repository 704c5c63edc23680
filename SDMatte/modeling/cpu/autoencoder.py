"""diffusers' autoencoder with less work, less memory and more digits."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.overrides import wrap_torch_function

LARGE = 2**27  # values of a map: the largest at 1024 x 1024
# Values that are computed at a time: few enough for a processor's cache.
ADDED_AT_ONCE = 2**19
CONVOLVED_AT_ONCE = 2**21

Moments = tuple[torch.Tensor, torch.Tensor]


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


class InplaceSiLU(nn.SiLU):
    """SiLU that overwrites its input where nobody needs that for a gradient.

    Its input is always a norm's fresh output here. At 1024 x 1024 that saves the decoder's largest
    map, half a gigabyte in bfloat16.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Gives a map of the same shape."""
        return F.silu(input, inplace=not torch.is_grad_enabled())


@wrap_torch_function(lambda input, num_groups: (input,))
def group_moments(input: torch.Tensor, num_groups: int) -> Moments:
    """Computes what a group norm divides by, to more digits than torch does in channels_last.

    torch adds up a whole group in one go there, which costs four digits at 1024 x 1024: an error of
    2e-4 of a picture, and far more of a map that is nearly constant, where it is 2e-6 in the usual
    layout.

    Args:
        input: ``[B, C, H, W]``.
        num_groups: G.

    Returns:
        Mean and variance, float64 ``[B, G, 1]``.
    """
    sums = input.new_zeros(input.shape[:2], dtype=torch.float64)  # [B, C]
    squares = torch.zeros_like(sums)
    for low, high in _strips(input, ADDED_AT_ONCE):
        values = input[:, :, low:high].to(_exact(input.dtype)).double()  # in one step it is slow
        sums += values.sum((2, 3))
        squares += (values * values).sum((2, 3))
    count = input[0].numel() // num_groups
    per_group = (len(input), num_groups, -1)
    mean = sums.view(per_group).sum(2, keepdim=True) / count
    return mean, squares.view(per_group).sum(2, keepdim=True) / count - mean.square()


def scale_and_shift(moments: Moments, weight, bias, eps: float, dtype: torch.dtype) -> Moments:
    """Writes a group norm as one product and one sum.

    Args:
        moments: Mean and variance, ``[B, G, 1]``.
        weight: ``[C]``.
        bias: ``[C]``.
        eps: Added to the variance.
        dtype: Of the map; what is returned is in float32 at least.

    Returns:
        Both ``[B, C, 1]``.
    """
    mean, variance = moments
    groups = mean.shape[1]
    scale = (variance + eps).rsqrt() * weight.view(groups, -1)  # [B, G, C / G]
    shift = bias.view(groups, -1) - mean * scale
    scale, shift = (v.flatten(1)[..., None].to(_exact(dtype)) for v in (scale, shift))
    return scale, shift


class ExactGroupNorm(nn.GroupNorm):
    """GroupNorm that keeps its digits in float32 and channels_last; see `group_moments`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises ``[B, C, H, W]``."""
        usual = input.ndim != 4 or input.is_contiguous() or not _plain_cpu(input)
        if usual or input.dtype != torch.float32:
            return super().forward(input)
        scale, shift = self.as_scale_and_shift(input)
        return torch.addcmul(shift, input, scale)

    def as_scale_and_shift(self, input: torch.Tensor) -> Moments:
        """Gives what ``[B, C, H, W]`` is multiplied with and what is added, ``[B, C, 1, 1]``."""
        moments = group_moments(input, self.num_groups)
        both = scale_and_shift(moments, self.weight, self.bias, self.eps, input.dtype)
        return both[0][..., None], both[1][..., None]


class ChunkedResnetBlock(nn.Module):
    """diffusers' `ResnetBlock2D` without a time embedding; large maps are computed in strips.

    Once the moments of a norm are known, norm, activation and convolution follow each other on a
    few rows, so that of the whole map there are never more than the input, the middle and the
    output. It takes the same time. That is for CPUs, and where no gradient is needed.

    Args:
        plain: The block, whose layers and their names are kept.
    """

    def __init__(self, plain: ResnetBlock2D):
        super().__init__()
        self.norm1, self.conv1 = _as_exact(plain.norm1), plain.conv1
        self.norm2, self.conv2 = _as_exact(plain.norm2), plain.conv2
        self.nonlinearity = InplaceSiLU()
        self.conv_shortcut = plain.conv_shortcut

    def forward(self, input_tensor: torch.Tensor, temb: None = None) -> torch.Tensor:
        """Gives ``[B, D, H, W]`` of ``[B, C, H, W]``."""
        if _plain_cpu(input_tensor) and input_tensor.numel() >= LARGE:
            middle = self._convolve(input_tensor, self.norm1, self.conv1)
            return self._convolve(middle, self.norm2, self.conv2, input_tensor)
        hidden = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        hidden = self.conv2(self.nonlinearity(self.norm2(hidden)))
        return self._shortcut(input_tensor) + hidden

    def _shortcut(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)

    def _convolve(self, hidden, norm, conv, residual=None) -> torch.Tensor:
        batch, _, height, width = hidden.shape
        scale, shift = norm.as_scale_and_shift(hidden)
        result = torch.empty(
            (batch, conv.out_channels, height, width),
            dtype=hidden.dtype,
            memory_format=torch.channels_last,
        )
        for low, high in _strips(hidden, CONVOLVED_AT_ONCE):
            above, below = int(low > 0), int(high < height)  # rows that the convolution reads, too
            rows = hidden[:, :, low - above : high + below].to(scale.dtype)
            rows = self.nonlinearity(torch.addcmul(shift, rows, scale)).to(hidden.dtype)
            if not above or not below:
                rows = F.pad(rows, (0, 0, 1 - above, 1 - below))
            rows = F.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))
            if residual is not None:
                rows += self._shortcut(residual[:, :, low:high])
            result[:, :, low:high] = rows
        return result


def _strips(hidden: torch.Tensor, values: int) -> Iterator[tuple[int, int]]:
    """Splits the rows of ``[B, C, H, W]`` into strips of about as many values."""
    batch, channels, height, width = hidden.shape
    rows = max(1, values // (batch * channels * width))
    for low in range(0, height, rows):
        yield low, min(low + rows, height)


def _plain_cpu(hidden: torch.Tensor) -> bool:
    """Whether a map may be computed step by step on the spot."""
    compiling = torch.compiler.is_compiling()
    return hidden.device.type == "cpu" and not torch.is_grad_enabled() and not compiling


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def optimize_for_cpu(vae: AutoencoderKL) -> None:
    """Puts the modules above into an autoencoder, in place; the names of the weights stay."""
    for block in vae.decoder.up_blocks:
        if block.upsamplers is not None:
            block.upsamplers = nn.ModuleList(UpsampleConv(up.conv) for up in block.upsamplers)
    _replace(vae, ResnetBlock2D, ChunkedResnetBlock)
    _replace(vae, nn.GroupNorm, _as_exact)
    _replace(vae, nn.SiLU, lambda silu: InplaceSiLU())


def _replace(root: nn.Module, kind: type[nn.Module], make: Callable) -> None:
    for module in list(root.modules()):
        for name, child in module.named_children():
            if type(child) is kind:
                setattr(module, name, make(child))


def _as_exact(plain: nn.GroupNorm) -> ExactGroupNorm:
    norm = ExactGroupNorm(plain.num_groups, plain.num_channels, plain.eps, device="meta")
    norm.weight, norm.bias = plain.weight, plain.bias
    return norm
