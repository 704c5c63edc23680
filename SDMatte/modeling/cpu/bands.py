"""Encodes pictures that are constant in bands, such as the map of a box, with a part of the work.

The autoencoder's encoder is convolutions, group norms and one attention. Rows that are equal stay
equal as long as they are further from any other rows, and from the picture's border, than the
convolutions have reached; likewise columns. So of each band of equal rows or columns only those
near its ends and one more are computed, at each of the encoder's resolutions; norms and attention
count that one as often as it stands for a row of the picture. The result is that of the whole
picture, up to rounding. Of a box at 1024 x 1024 a tenth of the work is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch.overrides import TorchFunctionMode

from SDMatte.modeling.cpu.autoencoder import group_moments, scale_and_shift

MAX_EDGES = 16
WORTHWHILE = 0.9

Interval = tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """The rows, or columns, of one resolution that are computed.

    Attributes:
        length: How many there are.
        kept: ``[K]``, those that are computed, sorted; each stands for all up to the next.
    """

    length: int
    kept: torch.Tensor

    @property
    def counts(self) -> torch.Tensor:
        """``[K]``, for how many each one stands."""
        return torch.diff(self.kept, append=self.kept.new_tensor([self.length]))

    def places(self, positions: torch.Tensor) -> torch.Tensor:
        """Where in ``kept`` that is what stands for each position."""
        return torch.searchsorted(self.kept, positions, right=True) - 1


def encode_bands(vae: AutoencoderKL, image: torch.Tensor) -> torch.Tensor | None:
    """Encodes a picture of constant bands.

    Args:
        vae: In evaluation mode.
        image: ``[1, 3, H, W]``.

    Returns:
        The mean of the posterior, ``[1, C, h, w]``, as ``vae.encode`` gives it; None where the
        picture has too few equal rows and columns for this to be of use.
    """
    encoder = vae.encoder
    depths = [2 * len(block.resnets) for block in encoder.down_blocks]
    depths[0] += 1  # conv_in
    depths[-1] += 2 * len(encoder.mid_block.resnets) + 1  # conv_out
    axes = []
    for dim in (2, 3):
        edges = find_edges(image, dim)
        if len(edges) > MAX_EDGES:
            return None
        axes.append(plan_axis(image.shape[dim], edges, depths))
    levels = list(zip(*axes, strict=True))
    shares = [len(r.kept) * len(c.kept) / (r.length * c.length) for r, c in levels]
    if sum(shares) > WORTHWHILE * len(shares):
        return None

    levels = [tuple(Axis(a.length, a.kept.to(image.device)) for a in level) for level in levels]
    hidden = image.to(vae.dtype)
    before: tuple[Axis, Axis] | None = None
    for block, level in zip(encoder.down_blocks, levels, strict=True):
        hidden = _take(hidden, before, [axis.kept for axis in level])
        with CountedRows(*level):
            if before is None:
                hidden = encoder.conv_in(hidden)
            for resnet in block.resnets:
                hidden = resnet(hidden, None)
        for downsampler in block.downsamplers or ():
            hidden = downsampler(hidden)
            level = tuple(Axis(axis.length // 2, axis.kept[::2] // 2) for axis in level)
        before = level
    with CountedRows(*before):
        hidden = encoder.mid_block(hidden)
        hidden = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(hidden)))
    if vae.quant_conv is not None:
        hidden = vae.quant_conv(hidden)
    everywhere = [torch.arange(axis.length, device=hidden.device) for axis in before]
    return _take(hidden, before, everywhere).chunk(2, dim=1)[0]


def find_edges(image: torch.Tensor, dim: int) -> list[int]:
    """Lists where a row (``dim`` 2) or column (3) differs from the one before; and both borders."""
    length = image.shape[dim]
    differs = image.narrow(dim, 1, length - 1) != image.narrow(dim, 0, length - 1)
    others = [d for d in range(image.ndim) if d != dim]
    return [0, *(differs.any(dim=others).nonzero().flatten() + 1).tolist(), length]


def plan_axis(length: int, edges: Sequence[int], depths: Sequence[int]) -> list[Axis]:
    """Plans which rows, or columns, are computed at each resolution.

    Args:
        length: Of the picture.
        edges: See `find_edges`.
        depths: How many 3 x 3 convolutions follow each other at each resolution. Between two, one
            of stride 2 halves it, which reads rows 2 i to 2 i + 2.
    """
    axes = []
    # What is not constant around an edge: nothing yet.
    spans: list[Interval] = [(edge, edge - 1) for edge in edges]
    for level, depth in enumerate(depths):
        spans = [(low - depth, high + depth) for low, high in spans]
        last = level == len(depths) - 1
        if not last:
            spans = [(-((2 - low) // 2), high // 2) for low, high in spans]  # after halving
        unit = 1 if last else 2
        kept: set[int] = set()
        for low, high in spans:
            kept.update(range(max(0, unit * low), min(length, unit * (high + 1))))
        free = sorted(set(range(length)) - kept)
        starts = [p for i, p in enumerate(free) if i == 0 or free[i - 1] != p - 1]
        kept.update(p + i for p in starts for i in range(unit))  # one of each band, or a pair
        axes.append(Axis(length, torch.tensor(sorted(kept))))
        length //= 2
    return axes


def _take(hidden: torch.Tensor, axes: tuple[Axis, Axis] | None, positions) -> torch.Tensor:
    """Picks rows and columns; of a whole picture where there are no axes yet."""
    for dim, wanted in zip((2, 3), positions, strict=True):
        places = wanted if axes is None else axes[dim - 2].places(wanted)
        hidden = hidden.index_select(dim, places)
    return hidden


class CountedRows(TorchFunctionMode):
    """Group norms and attentions inside count each row and column as often as it stands for one.

    Args:
        rows: Those that are there.
        columns: Likewise.
    """

    def __init__(self, rows: Axis, columns: Axis):
        super().__init__()
        self.counts = torch.outer(rows.counts, columns.counts)  # [h, w]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Replaces the three functions."""
        kwargs = kwargs or {}
        if func is group_moments:
            return self._moments(*args, **kwargs)
        if func is F.group_norm:
            return self._group_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _moments(self, input, num_groups) -> tuple[torch.Tensor, torch.Tensor]:
        values = input.flatten(2).double()  # [B, C, h*w]
        share = self.counts.flatten().double() / self.counts.sum()
        per_group = (len(input), num_groups, -1)
        mean = (values @ share).view(per_group).mean(2, keepdim=True)
        squares = (values.square() @ share).view(per_group).mean(2, keepdim=True)
        return mean, squares - mean.square()

    def _group_norm(self, input, num_groups, weight=None, bias=None, eps=1e-5) -> torch.Tensor:
        moments = self._moments(input, num_groups)
        scale, shift = scale_and_shift(moments, weight, bias, eps, input.dtype)
        normed = torch.addcmul(shift, input.flatten(2).to(shift.dtype), scale)  # [B, C, h*w]
        return normed.to(input.dtype).reshape(input.shape)

    def _attention(self, query, key, value, attn_mask=None, **kwargs) -> torch.Tensor:
        # A key that stands for n weighs n times: log(n) more.
        exact = torch.promote_types(query.dtype, torch.float32)
        bias = self.counts.flatten().to(exact).log().expand(query.shape[-2], -1)
        heads = (part.to(exact) for part in (query, key, value))
        return F.scaled_dot_product_attention(*heads, bias).to(query.dtype)
