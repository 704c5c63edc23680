"""Masked self-attention and visual cross-attention (paper, Sec. 3.4) as attention processors.

The processors hold only settings. The data of a forward pass is passed as an `AttentionContext` in
`cross_attention_kwargs`, so no batch data stays on the modules.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

MASK_BIAS = -10000.0
"""Added by the reference to the score of a key where the prompt's map is 0."""

DEAD_BIAS = -1000.0
"""A key whose bias is this far below the best one has a softmax weight of exactly 0 in float32
(exp underflows at -104) if scores differ by less than 896; trained ones differ by tens."""

MaskMode = Literal["bias", "binary", "log"]


@dataclass(frozen=True)
class KeySelection:
    """The keys that a masked self-attention reads, and the bias on their scores.

    Attributes:
        index: `[B, K]`, positions of the keys in the token grid; None for all keys.
        bias: `[B, K]`, added to the scores, 0 at the best key of each row. None if all are 0, so
            that fused attention kernels without a bias can be used.
    """

    index: torch.Tensor | None
    bias: torch.Tensor | None

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """Select tokens, `[B, N, C] -> [B, K, C]`."""
        if self.index is None:
            return tokens
        if len(tokens) == 1:
            return tokens.index_select(1, self.index[0])
        return tokens.gather(1, self.index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

    def mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the bias as diffusers' attention takes it, `[B, 1, K]`."""
        return None if self.bias is None else self.bias.unsqueeze(1).to(dtype)

    def to(self, device: torch.device) -> "KeySelection":
        """Copy the selection to a device, without blocking."""
        moved = (t if t is None else t.to(device, non_blocking=True) for t in vars(self).values())
        return KeySelection(*moved)


def score_bias(keep: torch.Tensor, mode: MaskMode = "bias") -> torch.Tensor:
    """Compute the bias on the attention scores from a map of the keys to keep.

    Args:
        keep: Values in [0, 1]; 1 keeps a key.
        mode: `"bias"`: `(1 - keep) * -10000`, as in the reference; only the peaks of a heat map
            survive. `"binary"`: the same for `keep >= 0.5`. `"log"`: `log(keep)`, which scales the
            weight of a key by `keep`.
    """
    if mode == "log":
        return keep.log().clamp(min=MASK_BIAS)
    if mode == "binary":
        keep = (keep >= 0.5).to(keep)
    return (1 - keep) * MASK_BIAS


def select_keys(
    keep: torch.Tensor, mode: MaskMode = "bias", all_keys: bool = False
) -> list[KeySelection]:
    """Select the keys that a masked self-attention has to read.

    A bias shared by all keys of a row cancels in the softmax, so each row is shifted to have its
    best key at 0. This preserves precision and turns an empty mask into plain attention. Keys below
    `DEAD_BIAS` after the shift have no influence, so dropping them is exact and saves work.

    Keys are dropped only if `keep` is on the CPU. On another device, reading the map back would
    block the host, and CUDA graphs need constant shapes.

    Args:
        keep: `[B, N]` in [0, 1], one row per image, shared by all heads and queries.
        mode: See `score_bias`.
        all_keys: Drop no keys, so that shapes do not depend on data (for compiled models).

    Returns:
        One selection for the batch, or one per image if their numbers of keys differ.
    """
    bias = score_bias(keep.float(), mode)
    bias = bias - bias.amax(dim=1, keepdim=True)
    if all_keys or torch.compiler.is_compiling() or keep.device.type != "cpu":
        return [KeySelection(index=None, bias=bias)]
    counts = (bias > DEAD_BIAS).sum(dim=1).tolist()
    if len(set(counts)) > 1:
        # On a CPU, one call per image takes 0.5 to 1.3 times as long as one call for all images,
        # padded to the image with the most keys. Not measured on GPUs.
        return [key for row in keep.split(1) for key in select_keys(row, mode)]
    index = None
    if counts[0] < bias.shape[1]:
        index = bias.topk(counts[0], dim=1).indices.sort(dim=1).values
        bias = bias.gather(1, index)
    return [KeySelection(index=index, bias=bias if bool(bias.any()) else None)]


@dataclass(frozen=True)
class AttentionContext:
    """Inputs of the attention layers in one forward pass, besides the hidden states.

    Attributes:
        visual_tokens: `[B, h * w, cross_attention_dim]`, tokens of the visual prompt.
        keys: Keys of the masked self-attentions by number of tokens, see `select_keys`; empty
            without masking.
    """

    visual_tokens: torch.Tensor | None = None
    keys: dict[int, list[KeySelection]] = field(default_factory=dict)


def build_key_selections(
    prompt: torch.Tensor,
    grid: tuple[int, int],
    num_levels: int,
    mode: MaskMode = "bias",
    all_keys: bool = False,
) -> dict[int, list[KeySelection]]:
    """Select the keys of the masked self-attentions at every level of the U-Net.

    As in the reference, the prompt is resized to the latent grid and from there to each level,
    both by nearest neighbor. A direct resize would pick different pixels.

    Args:
        prompt: `[B, 1, H, W]` in [-1, 1].
        grid: Height and width of the latents.
        num_levels: Number of resolutions in the U-Net; each halves the grid.
        mode: See `score_bias`.
        all_keys: See `select_keys`.

    Returns:
        Selections by number of tokens.
    """
    masks = build_masks(prompt, grid, num_levels)
    return {keep.shape[1]: select_keys(keep, mode, all_keys) for keep in masks}


def build_masks(prompt: torch.Tensor, grid: tuple[int, int], num_levels: int) -> list[torch.Tensor]:
    """Resize a prompt's map to every level, `[B, N]` in [0, 1]; see `build_key_selections`."""
    keep = F.interpolate((prompt.float() + 1) / 2, size=grid, mode="nearest")  # [-1, 1] -> [0, 1]
    sizes = [(-(-grid[0] // 2**level), -(-grid[1] // 2**level)) for level in range(num_levels)]
    return [F.interpolate(keep, size=size, mode="nearest").flatten(1) for size in sizes]


class MattingAttnProcessor(AttnProcessor2_0):
    """Scaled dot-product attention that reads an `AttentionContext`.

    Args:
        masked: In self-attention, read only the keys selected by the prompt.
        visual: In cross-attention, read the visual tokens instead of the text embedding.
    """

    def __init__(self, masked: bool = False, visual: bool = False):
        super().__init__()
        self.masked = masked
        self.visual = visual

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        context: AttentionContext | None = None,
    ) -> torch.Tensor:
        """Compute attention; called by diffusers' `Attention`."""
        context = context or AttentionContext()
        keys = self.find_keys(context, hidden_states)
        if encoder_hidden_states is None and self.masked and keys is not None:
            # In an export, the number of chunks would become a constant, even for one chunk.
            images = hidden_states.chunk(len(keys)) if len(keys) > 1 else (hidden_states,)
            outputs = [
                super(MattingAttnProcessor, self).__call__(
                    attn, image, selected.take(image), selected.mask(image.dtype), temb
                )
                for image, selected in zip(images, keys, strict=True)
            ]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if encoder_hidden_states is not None and self.visual and context.visual_tokens is not None:
            encoder_hidden_states = context.visual_tokens
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def find_keys(
        self, context: AttentionContext, hidden_states: torch.Tensor
    ) -> list[KeySelection] | None:
        """Return the keys that self-attention on `[B, N, C]` reads; None for all."""
        return context.keys.get(hidden_states.shape[1])
