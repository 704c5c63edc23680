"""Modules that make diffusers' autoencoder faster, leaner and more precise on CPUs.

See docs/cpu.md for the ideas and what they save.
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.overrides import wrap_torch_function

LARGE_MAP = 2**27
"""Residual blocks process maps of this many values in chunks: the largest at 1024 x 1024."""

# Values per chunk, few enough to fit into a processor's cache.
SUM_CHUNK = 2**19
CONV_CHUNK = 2**21

Moments = tuple[torch.Tensor, torch.Tensor]


class FoldedUpsample(Upsample2D):
    """Nearest upsampling folded into the 3 x 3 convolution that follows it.

    Each of the four output pixels of an input pixel depends on a 2 x 2 neighborhood only. It is
    computed by a 2 x 2 convolution of the small map with summed weights: 16 products for four
    outputs instead of 36. Used only on CPUs; not measured on other devices.
    """

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Map `[B, C, h, w]` to `[B, D, 2 * h, 2 * w]`."""
        if hidden_states.device.type != "cpu":
            return super().forward(hidden_states, *args, **kwargs)
        return _upsample_and_convolve(hidden_states, self.conv)


class SkippedUpsample(nn.Upsample):
    """A nearest upsampling of an `AutoencoderTiny`, left to the following `UpsamplingConv`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the input."""
        return input


class UpsamplingConv(nn.Conv2d):
    """A 3 x 3 convolution with nearest upsampling before it; see `FoldedUpsample`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `[B, C, h, w]` to `[B, D, 2 * h, 2 * w]`."""
        if input.device.type != "cpu":
            return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))
        return _upsample_and_convolve(input, self)


class InplaceTinyBlock(AutoencoderTinyBlock):
    """A residual block of an `AutoencoderTiny` that works in place unless gradients are needed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[B, C, H, W]` to `[B, D, H, W]`."""
        if not _is_eager_cpu(x):
            return super().forward(x)
        hidden = x
        for layer in self.conv:
            hidden = F.relu_(hidden) if isinstance(layer, nn.ReLU) else layer(hidden)
        hidden += self.skip(x)
        return F.relu_(hidden)


def _upsample_and_convolve(hidden: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    height, width = hidden.shape[-2:]
    result = torch.empty(
        (len(hidden), conv.out_channels, 2 * height, 2 * width),
        dtype=conv.weight.dtype,
        device=conv.weight.device,
        memory_format=torch.channels_last,
    )
    for y, rows in enumerate(_fold(conv.weight.float(), dim=2)):
        for x, kernel in enumerate(_fold(rows, dim=3)):
            kernel = kernel.to(conv.weight.dtype, memory_format=torch.channels_last)
            part = F.conv2d(hidden, kernel, conv.bias, padding=1)
            result[..., y::2, x::2] = part[..., y : y + height, x : x + width]
    return result


def _fold(weight: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum three weights to two, for the first and the second output of an input pixel."""
    before, middle, after = weight.split(1, dim)
    return torch.cat([before, middle + after], dim), torch.cat([before + middle, after], dim)


class InplaceSiLU(nn.SiLU):
    """SiLU that overwrites its input, the output of a norm, unless gradients are needed.

    At 1024 x 1024, this saves the decoder's largest map, half a gigabyte in bfloat16.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply SiLU to a tensor of any shape."""
        return F.silu(input, inplace=not torch.is_grad_enabled())


@wrap_torch_function(lambda input, num_groups: (input,))
def group_moments(input: torch.Tensor, num_groups: int) -> Moments:
    """Compute mean and variance, float64 `[B, G, 1]`, of groups of channels of `[B, C, H, W]`.

    For channels_last, torch's group norm sums each group in a single pass. At 1024 x 1024, this
    causes errors of 2e-4 on images and far larger ones on nearly constant maps, compared with 2e-6
    in the contiguous layout.
    """
    sums = input.new_zeros(input.shape[:2], dtype=torch.float64)  # [B, C]
    squares = torch.zeros_like(sums)
    for low, high in _row_chunks(input, SUM_CHUNK):
        # A direct conversion of bfloat16 to double is slow.
        values = input[:, :, low:high].to(_at_least_float32(input.dtype)).double()
        sums += values.sum((2, 3))
        squares += (values * values).sum((2, 3))
    count = input[0].numel() // num_groups
    per_group = (len(input), num_groups, -1)
    mean = sums.view(per_group).sum(2, keepdim=True) / count
    return mean, squares.view(per_group).sum(2, keepdim=True) / count - mean.square()


def scale_and_shift(
    moments: Moments, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
) -> Moments:
    """Express a group norm as a scale and a shift, both `[B, C, 1]` in at least float32."""
    mean, variance = moments
    groups = mean.shape[1]
    scale = (variance + eps).rsqrt() * weight.view(groups, -1)  # [B, G, C / G]
    shift = bias.view(groups, -1) - mean * scale
    scale, shift = (v.flatten(1)[..., None].to(_at_least_float32(dtype)) for v in (scale, shift))
    return scale, shift


class ExactGroupNorm(nn.GroupNorm):
    """Group norm that stays precise in float32 and channels_last; see `group_moments`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize `[B, C, H, W]`."""
        imprecise = input.ndim == 4 and not input.is_contiguous() and input.dtype == torch.float32
        if not imprecise or not _is_eager_cpu(input):
            return super().forward(input)
        scale, shift = self.scale_and_shift(input)
        return torch.addcmul(shift, input, scale)

    def scale_and_shift(self, input: torch.Tensor) -> Moments:
        """Compute the scale and the shift for `[B, C, H, W]`, both `[B, C, 1, 1]`."""
        moments = group_moments(input, self.num_groups)
        both = scale_and_shift(moments, self.weight, self.bias, self.eps, input.dtype)
        return both[0][..., None], both[1][..., None]


class ChunkedResnetBlock(ResnetBlock2D):
    """A residual block that computes large maps in chunks of rows.

    Once the moments of a norm are known, norm, activation and convolution run on a few rows at a
    time, so only the input, the middle map and the output are held in full. This is as fast, and is
    used on CPUs when no gradients are needed.
    """

    def forward(self, input_tensor: torch.Tensor, temb: None = None) -> torch.Tensor:
        """Map `[B, C, H, W]` to `[B, D, H, W]`; autoencoders have no time embedding."""
        if _is_eager_cpu(input_tensor) and input_tensor.numel() >= LARGE_MAP:
            middle = self._run_in_chunks(input_tensor, self.norm1, self.conv1)
            return self._run_in_chunks(middle, self.norm2, self.conv2, input_tensor)
        hidden = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        hidden = self.conv2(self.nonlinearity(self.norm2(hidden)))
        return self._shortcut(input_tensor) + hidden

    def _shortcut(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)

    def _run_in_chunks(
        self,
        hidden: torch.Tensor,
        norm: ExactGroupNorm,
        conv: nn.Conv2d,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch, _, height, width = hidden.shape
        scale, shift = norm.scale_and_shift(hidden)
        result = torch.empty(
            (batch, conv.out_channels, height, width),
            dtype=hidden.dtype,
            memory_format=torch.channels_last,
        )
        for low, high in _row_chunks(hidden, CONV_CHUNK):
            above, below = int(low > 0), int(high < height)  # rows of context for the convolution
            rows = hidden[:, :, low - above : high + below].to(scale.dtype)
            rows = self.nonlinearity(torch.addcmul(shift, rows, scale)).to(hidden.dtype)
            if not above or not below:
                rows = F.pad(rows, (0, 0, 1 - above, 1 - below))
            rows = F.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))
            if residual is not None:
                rows += self._shortcut(residual[:, :, low:high])
            result[:, :, low:high] = rows
        return result


OPTIMIZED = {
    Upsample2D: FoldedUpsample,
    ResnetBlock2D: ChunkedResnetBlock,
    nn.GroupNorm: ExactGroupNorm,
    nn.SiLU: InplaceSiLU,
    AutoencoderTinyBlock: InplaceTinyBlock,
}


def optimize_for_cpu(vae: nn.Module) -> None:
    """Optimize an `AutoencoderKL` or an `AutoencoderTiny` in place.

    Modules change their classes and keep their weights. Results stay the same up to rounding. Also
    enables `SDMatte.modeling.cpu.encode_bands`.
    """
    for module in vae.modules():
        module.__class__ = OPTIMIZED.get(type(module), type(module))
    if isinstance(vae, AutoencoderTiny):
        for upsample, conv in itertools.pairwise(vae.decoder.layers):
            if type(upsample) is nn.Upsample and (upsample.mode, upsample.scale_factor) == (
                "nearest",
                2.0,
            ):
                upsample.__class__, conv.__class__ = SkippedUpsample, UpsamplingConv
    vae.optimized_for_cpu = True


def undo_optimization(vae: nn.Module) -> None:
    """Undo `optimize_for_cpu` before an export, which has its own operators for these modules."""
    plain: dict[type, type] = {SkippedUpsample: nn.Upsample, UpsamplingConv: nn.Conv2d}
    plain |= {fast: original for original, fast in OPTIMIZED.items()}
    for module in vae.modules():
        module.__class__ = plain.get(type(module), type(module))
    vae.optimized_for_cpu = False


def _row_chunks(hidden: torch.Tensor, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Yield row ranges of `[B, C, H, W]` that cover about `chunk_size` values each."""
    batch, channels, height, width = hidden.shape
    rows = max(1, chunk_size // (batch * channels * width))
    for low in range(0, height, rows):
        yield low, min(low + rows, height)


def _is_eager_cpu(hidden: torch.Tensor) -> bool:
    compiling = torch.compiler.is_compiling()
    return hidden.device.type == "cpu" and not torch.is_grad_enabled() and not compiling


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
