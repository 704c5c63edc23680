"""Encode images that are constant in bands, such as the map of a box, with a part of the work.

The autoencoder's encoder consists of convolutions, group norms and one attention. Equal rows stay
equal as long as they are farther from any other row, and from the border, than the convolutions
have reached; likewise columns. So only the rows and columns near the ends of each band of equal
ones are computed, plus one to represent the rest, at each of the encoder's resolutions. Norms and
attention weight the representative by the number of rows it stands for. The result equals that of
the whole image up to rounding. For a box at 1024 x 1024, a tenth of the work remains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch.overrides import TorchFunctionMode

from SDMatte.modeling.cpu.autoencoder import group_moments, scale_and_shift

MAX_EDGES = 16
MAX_FRACTION = 0.9
"""Fraction of the work up to which encoding by bands is worthwhile."""


@dataclass(frozen=True)
class Axis:
    """The rows, or columns, that are computed at one resolution.

    Attributes:
        length: Number of rows of the whole map.
        kept: `[K]`, sorted; each row represents all rows up to the next one.
    """

    length: int
    kept: torch.Tensor

    @property
    def counts(self) -> torch.Tensor:
        """`[K]`, number of rows that each kept one represents."""
        return torch.diff(self.kept, append=self.kept.new_tensor([self.length]))

    def indices(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the indices into `kept` of the rows that represent the given ones."""
        return torch.searchsorted(self.kept, positions, right=True) - 1

    def halved(self) -> "Axis":
        """Return the axis after a convolution of stride 2."""
        return Axis(self.length // 2, self.kept[::2] // 2)


Level = tuple[Axis, Axis]
"""Rows and columns of one resolution."""


def encode_bands(vae: torch.nn.Module, images: torch.Tensor) -> torch.Tensor | None:
    """Encode images of constant bands.

    The bands are found on the CPU, and only what is computed is uploaded: reading an image back
    from another device would make the host wait for it.

    Args:
        vae: The autoencoder, in evaluation mode, on any device.
        images: `[B, 3, H, W]`, or `[B, 1, H, W]` for equal channels, on the CPU.

    Returns:
        Means of the posterior, `[B, C, h, w]`, equal to those of `vae.encode`. None if an image has
        too few equal rows and columns or is not on the CPU, if the autoencoder was not prepared by
        `optimize_for_cpu`, or if its device lacks float64.
    """
    ready = getattr(vae, "optimized_for_cpu", False) and vae.device.type != "mps"
    if not ready or images.device.type != "cpu":
        return None
    plans = [_plan_levels(vae.encoder, image[None]) for image in images]
    if any(plan is None for plan in plans):
        return None
    pairs = zip(images, plans, strict=True)
    return torch.cat([_encode(vae, image[None], plan) for image, plan in pairs])


def _plan_levels(encoder: torch.nn.Module, image: torch.Tensor) -> list[Level] | None:
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
    fractions = [len(r.kept) * len(c.kept) / (r.length * c.length) for r, c in levels]
    if sum(fractions) > MAX_FRACTION * len(fractions):
        return None
    return levels


def _encode(vae: AutoencoderKL, image: torch.Tensor, levels: Sequence[Level]) -> torch.Tensor:
    encoder = vae.encoder
    hidden = image.expand(-1, encoder.conv_in.in_channels, -1, -1)
    before: Level | None = None
    for block, level in zip(encoder.down_blocks, levels, strict=True):
        hidden = _select(hidden, before, [axis.kept for axis in level])
        hidden = hidden.to(vae.device, vae.dtype, non_blocking=True)
        with CountedRows(*level, vae.device):
            if before is None:
                hidden = encoder.conv_in(hidden)
            for resnet in block.resnets:
                hidden = resnet(hidden, None)
        for downsampler in block.downsamplers or ():
            hidden = downsampler(hidden)
            level = tuple(axis.halved() for axis in level)
        before = level
    with CountedRows(*before, vae.device):
        hidden = encoder.mid_block(hidden)
        hidden = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(hidden)))
    if vae.quant_conv is not None:
        hidden = vae.quant_conv(hidden)
    everywhere = [torch.arange(axis.length) for axis in before]
    return _select(hidden, before, everywhere).chunk(2, dim=1)[0]


def find_edges(image: torch.Tensor, dim: int) -> list[int]:
    """List rows (`dim` 2) or columns (3) that differ from the previous one, and both borders."""
    length = image.shape[dim]
    differs = image.narrow(dim, 1, length - 1) != image.narrow(dim, 0, length - 1)
    others = [d for d in range(image.ndim) if d != dim]
    return [0, *(differs.any(dim=others).nonzero().flatten() + 1).tolist(), length]


def plan_axis(length: int, edges: Sequence[int], depths: Sequence[int]) -> list[Axis]:
    """Choose the rows, or columns, to compute at each resolution.

    Args:
        length: Number of rows of the image.
        edges: See `find_edges`.
        depths: Number of successive 3 x 3 convolutions at each resolution. Between resolutions, a
            convolution of stride 2 reads rows 2 i to 2 i + 2.
    """
    axes = []
    # First and last row of the region around each edge that is not constant: empty at first.
    spans = [(edge, edge - 1) for edge in edges]
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


def _select(
    hidden: torch.Tensor, level: Level | None, positions: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Select rows and columns, by position in the whole map; `level` None: of a whole map."""
    for dim, wanted in zip((2, 3), positions, strict=True):
        indices = wanted if level is None else level[dim - 2].indices(wanted)
        hidden = hidden.index_select(dim, indices.to(hidden.device, non_blocking=True))
    return hidden


class CountedRows(TorchFunctionMode):
    """Inside, group norms and attentions weight rows and columns by how many they represent.

    Args:
        rows: Rows of the maps.
        columns: Columns of the maps.
        device: Where the maps are.
    """

    def __init__(self, rows: Axis, columns: Axis, device: torch.device):
        super().__init__()
        counts = (axis.counts.to(device, non_blocking=True) for axis in (rows, columns))
        self.counts = torch.outer(*counts)  # [h, w]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Replace three functions."""
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
        # A key that represents n keys has n times the weight: log(n) more score.
        exact = torch.promote_types(query.dtype, torch.float32)
        bias = self.counts.flatten().to(exact).log().expand(query.shape[-2], -1)
        heads = (part.to(exact) for part in (query, key, value))
        return F.scaled_dot_product_attention(*heads, bias).to(query.dtype)
