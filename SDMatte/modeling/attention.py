"""Masked self-attention and visual cross-attention (paper, Sec. 3.4) as attention processors.

The processors hold only settings. The data of one forward pass travels as an `AttentionContext` in
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
        index: `[B, K]`, positions of the keys in the token grid; None for all of them.
        bias: `[B, K]`, added to the scores, 0 at the best key of each row; None if all are 0.
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


def score_bias(keep: torch.Tensor, mode: MaskMode = "bias") -> torch.Tensor:
    """Compute the bias on the attention scores from a map of what to attend to.

    Args:
        keep: Values in [0, 1]; 1 is attended to.
        mode: `"bias"`: `(1 - keep) * -10000`, as the reference; only the peaks of a heat map
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
) -> KeySelection:
    """Find the keys that a masked self-attention has to read.

    A bias shared by all keys of a row cancels in the softmax, so each row is shifted to have its
    best key at 0. This preserves precision and turns an empty mask into plain attention. Keys below
    `DEAD_BIAS` after the shift have no influence; dropping them is exact and saves their work.

    Args:
        keep: `[B, N]` in [0, 1], one row per image, shared by all heads and queries.
        mode: See `score_bias`.
        all_keys: Drop no keys, so that shapes do not depend on data (for compiled models).
    """
    bias = score_bias(keep.float(), mode)
    bias = bias - bias.amax(dim=1, keepdim=True)
    if all_keys or torch.compiler.is_compiling():
        return KeySelection(index=None, bias=bias)
    count = int((bias > DEAD_BIAS).sum(dim=1).max())
    index = None
    if count < bias.shape[1]:
        # Rows with fewer live keys also take dead ones; their bias still gives them weight 0.
        index = bias.topk(count, dim=1).indices.sort(dim=1).values
        bias = bias.gather(1, index)
    return KeySelection(index=index, bias=bias if bool(bias.any()) else None)


@dataclass(frozen=True)
class AttentionContext:
    """Inputs of the attention layers of one forward pass, besides their hidden states.

    Attributes:
        visual_tokens: `[B, h * w, cross_attention_dim]`, tokens of the visual prompt.
        keys: Keys of the masked self-attentions by number of tokens; empty without masking.
    """

    visual_tokens: torch.Tensor | None = None
    keys: dict[int, KeySelection] = field(default_factory=dict)


def build_key_selections(
    prompt: torch.Tensor,
    grid: tuple[int, int],
    num_levels: int,
    mode: MaskMode = "bias",
    all_keys: bool = False,
) -> dict[int, KeySelection]:
    """Compute the masks of all levels of the U-Net.

    As in the reference, the prompt is resized to the latent grid and from there to each level,
    both by nearest neighbor. A direct resize would pick other pixels.

    Args:
        prompt: `[B, 1, H, W]` in [-1, 1].
        grid: Height and width of the latents.
        num_levels: Number of resolutions in the U-Net; each halves the grid.
        mode: See `score_bias`.
        all_keys: See `select_keys`.

    Returns:
        Selections by number of tokens.
    """
    keep = F.interpolate((prompt.float() + 1) / 2, size=grid, mode="nearest")  # [-1, 1] -> [0, 1]
    selections = {}
    for level in range(num_levels):
        size = (-(-grid[0] // 2**level), -(-grid[1] // 2**level))
        at_level = F.interpolate(keep, size=size, mode="nearest").flatten(1)  # [B, n]
        selections[at_level.shape[1]] = select_keys(at_level, mode, all_keys)
    return selections


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
        """Attend; diffusers' `Attention` calls this."""
        context = context or AttentionContext()
        if encoder_hidden_states is None:
            keys = context.keys.get(hidden_states.shape[1]) if self.masked else None
            if keys is not None:
                encoder_hidden_states = keys.take(hidden_states)
                if keys.bias is not None:
                    attention_mask = keys.bias.unsqueeze(1).to(hidden_states.dtype)  # [B, 1, K]
        elif self.visual and context.visual_tokens is not None:
            encoder_hidden_states = context.visual_tokens
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
