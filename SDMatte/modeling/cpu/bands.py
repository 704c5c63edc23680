"""Encode images of constant bands, such as the map of a box, with a fraction of the work.

The autoencoder's encoder consists of convolutions, group norms and at most one attention. Equal
rows stay equal while they are farther from different rows and from the border than the convolutions
reach; the same holds for columns. So at each of the encoder's resolutions, only the rows and
columns near the ends of each band are computed, plus one that represents the rest of the band.
Norms and attention weight the representative by the number of rows it stands for. The result equals
that of the whole image up to rounding. For a box at 1024 x 1024, a tenth of the work remains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock, EncoderTiny
from torch import nn
from torch.overrides import TorchFunctionMode

from SDMatte.modeling.cpu.autoencoder import group_moments, scale_and_shift

MAX_EDGES = 16
MAX_FRACTION = 0.9
"""Largest fraction of the work for which encoding by bands is worthwhile."""


@dataclass(frozen=True)
class Axis:
    """The rows, or columns, that are computed at one resolution.

    Attributes:
        length: Number of rows of the whole map.
        kept: `[K]`, indices of the computed rows, sorted; each represents all rows up to the next.
    """

    length: int
    kept: torch.Tensor

    @property
    def counts(self) -> torch.Tensor:
        """`[K]`, number of rows that each kept row represents."""
        return torch.diff(self.kept, append=self.kept.new_tensor([self.length]))

    def indices(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the indices into `kept` of the rows that represent the rows at `positions`."""
        return torch.searchsorted(self.kept, positions, right=True) - 1

    def halved(self) -> "Axis":
        """Return the axis after a convolution of stride 2."""
        return Axis(self.length // 2, self.kept[::2] // 2)


Level = tuple[Axis, Axis]
"""Rows and columns of one resolution."""

Layer = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Stage:
    """The part of an encoder at one resolution.

    Attributes:
        layers: The layers without `downsample`.
        downsample: The convolution of stride 2 that follows; None at the last resolution.
        depth: Number of successive 3 x 3 convolutions in `layers`.
        padding: Rows of padding that `downsample` reads above the map: 0 or 1.
    """

    layers: list[Layer]
    downsample: Layer | None = None
    depth: int = 0
    padding: int = 0


def list_stages(encoder: nn.Module) -> list[Stage]:
    """Divide the encoder of an `AutoencoderKL` or an `AutoencoderTiny` by resolution."""
    if isinstance(encoder, EncoderTiny):
        stages = [Stage([lambda image: image.add(1).div(2)], padding=1)]
        for layer in encoder.layers:
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                stages[-1].downsample = layer
                stages.append(Stage([], padding=1))
                continue
            stages[-1].layers.append(layer)
            stages[-1].depth += 3 if isinstance(layer, AutoencoderTinyBlock) else 1
        return stages
    stages = [
        Stage([*block.resnets], *(block.downsamplers or [None]), depth=2 * len(block.resnets))
        for block in encoder.down_blocks
    ]
    stages[0].layers.insert(0, encoder.conv_in)
    stages[0].depth += 1
    tail = [encoder.mid_block, encoder.conv_norm_out, encoder.conv_act, encoder.conv_out]
    stages[-1].layers += tail
    stages[-1].depth += 2 * len(encoder.mid_block.resnets) + 1
    return stages


def encode_bands(vae: torch.nn.Module, images: torch.Tensor) -> torch.Tensor | None:
    """Encode images of constant bands.

    Args:
        vae: The autoencoder, in evaluation mode.
        images: `[B, 3, H, W]`, or `[B, 1, H, W]` for equal channels.

    Returns:
        Latents, or means of the posterior, `[B, C, h, w]`, equal to those of `vae.encode`. None if
        an image has too few equal rows and columns, if `optimize_for_cpu` was not called, or on
        another device: there, launching the many small operations takes longer than encoding the
        whole map (on an H200 at 512 x 512, 49 ms instead of 13 ms).
    """
    ready = getattr(vae, "optimized_for_cpu", False) and vae.device.type == "cpu"
    if not ready or images.device.type != "cpu":
        return None
    stages = list_stages(vae.encoder)
    plans = [_plan_levels(stages, image[None]) for image in images]
    if any(plan is None for plan in plans):
        return None
    pairs = zip(images, plans, strict=True)
    encoded = torch.cat([_encode(vae, stages, image[None], plan) for image, plan in pairs])
    if isinstance(vae.encoder, EncoderTiny):
        return encoded
    return (encoded if vae.quant_conv is None else vae.quant_conv(encoded)).chunk(2, dim=1)[0]


def _plan_levels(stages: Sequence[Stage], image: torch.Tensor) -> list[Level] | None:
    depths = [stage.depth for stage in stages]
    axes = []
    for dim in (2, 3):
        edges = find_edges(image, dim)
        if len(edges) > MAX_EDGES:
            return None
        axes.append(plan_axis(image.shape[dim], edges, depths, stages[0].padding))
    levels = list(zip(*axes, strict=True))
    fractions = [len(r.kept) * len(c.kept) / (r.length * c.length) for r, c in levels]
    if sum(fractions) > MAX_FRACTION * len(fractions):
        return None
    return levels


def _encode(
    vae: nn.Module, stages: Sequence[Stage], image: torch.Tensor, levels: Sequence[Level]
) -> torch.Tensor:
    hidden = image.expand(-1, 3, -1, -1)
    before: Level | None = None
    for stage, level in zip(stages, levels, strict=True):
        hidden = _select(hidden, before, [axis.kept for axis in level])
        hidden = hidden.to(vae.dtype)
        with CountedRows(*level):
            for layer in stage.layers:
                hidden = layer(hidden)
        before = level
        if stage.downsample is not None:
            hidden = stage.downsample(hidden)
            before = tuple(axis.halved() for axis in level)
    return _select(hidden, before, [torch.arange(axis.length) for axis in before])


def find_edges(image: torch.Tensor, dim: int) -> list[int]:
    """List rows (`dim` 2) or columns (3) that differ from the previous one, and both borders."""
    length = image.shape[dim]
    differs = image.narrow(dim, 1, length - 1) != image.narrow(dim, 0, length - 1)
    others = [d for d in range(image.ndim) if d != dim]
    return [0, *(differs.any(dim=others).nonzero().flatten() + 1).tolist(), length]


def plan_axis(
    length: int, edges: Sequence[int], depths: Sequence[int], padding: int = 0
) -> list[Axis]:
    """Choose the rows, or columns, to compute at each resolution.

    Args:
        length: Number of rows of the image.
        edges: See `find_edges`.
        depths: Number of successive 3 x 3 convolutions at each resolution. Between resolutions, a
            convolution of stride 2 reads rows 2 i - padding to 2 i - padding + 2.
        padding: Rows of padding above the map, 0 or 1; see `depths`.
    """
    axes = []
    # First and last row of the non-constant region around each edge, initially empty.
    spans = [(edge, edge - 1) for edge in edges]
    for level, depth in enumerate(depths):
        spans = [(low - depth, high + depth) for low, high in spans]
        last = level == len(depths) - 1
        if not last:
            # The same regions at half the resolution.
            spans = [(-((2 - padding - low) // 2), (high + padding) // 2) for low, high in spans]
        unit = 1 if last else 2
        kept: set[int] = set()
        for low, high in spans:
            kept.update(range(max(0, unit * low), min(length, unit * (high + 1))))
        free = sorted(set(range(length)) - kept)
        starts = [p for i, p in enumerate(free) if i == 0 or free[i - 1] != p - 1]
        kept.update(p + i for p in starts for i in range(unit))  # one row per band, or a pair
        axes.append(Axis(length, torch.tensor(sorted(kept))))
        length //= 2
    return axes


def _select(
    hidden: torch.Tensor, level: Level | None, positions: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Select rows and columns by position in the whole map; `level` None: `hidden` is whole."""
    for dim, wanted in zip((2, 3), positions, strict=True):
        indices = wanted if level is None else level[dim - 2].indices(wanted)
        hidden = hidden.index_select(dim, indices)
    return hidden


class CountedRows(TorchFunctionMode):
    """Let group norms and attention weight rows and columns by the number they represent."""

    def __init__(self, rows: Axis, columns: Axis):
        super().__init__()
        self.counts = torch.outer(rows.counts, columns.counts)  # [h, w]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Replace the functions that average over rows and columns."""
        replaced = {
            group_moments: self._moments,
            F.group_norm: self._group_norm,
            F.scaled_dot_product_attention: self._attention,
        }
        return replaced.get(func, func)(*args, **(kwargs or {}))

    def _moments(self, input, num_groups) -> tuple[torch.Tensor, torch.Tensor]:
        values = input.flatten(2).double()  # [B, C, h * w]
        weights = self.counts.flatten().double() / self.counts.sum()
        per_group = (len(input), num_groups, -1)
        mean = (values @ weights).view(per_group).mean(2, keepdim=True)
        squares = (values.square() @ weights).view(per_group).mean(2, keepdim=True)
        return mean, squares - mean.square()

    def _group_norm(self, input, num_groups, weight=None, bias=None, eps=1e-5) -> torch.Tensor:
        moments = self._moments(input, num_groups)
        scale, shift = scale_and_shift(moments, weight, bias, eps, input.dtype)
        normed = torch.addcmul(shift, input.flatten(2).to(shift.dtype), scale)  # [B, C, h * w]
        return normed.to(input.dtype).reshape(input.shape)

    def _attention(self, query, key, value, attn_mask=None, **kwargs) -> torch.Tensor:
        # A key that represents n keys needs n times the weight: add log(n) to its score.
        exact = torch.promote_types(query.dtype, torch.float32)
        bias = self.counts.flatten().to(exact).log().expand(query.shape[-2], -1)
        heads = (part.to(exact) for part in (query, key, value))
        return F.scaled_dot_product_attention(*heads, bias).to(query.dtype)
