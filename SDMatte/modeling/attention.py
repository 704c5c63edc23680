"""Masked self-attention and visual cross-attention as diffusers attention processors.

Paper section 3.4. The processors hold only settings; what belongs to one forward pass travels as
an `AttentionContext` in ``cross_attention_kwargs``, so nothing of a batch stays on the module.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from SDMatte.errors import ConfigError

MASK_BIAS = -10000.0
"""What the reference adds to the score of a key where the prompt's map is 0."""

DEAD_BIAS = -1000.0
"""A key whose bias lies this far below the best one has a softmax weight of exactly 0 in float32
(exp underflows at -104) for any scores that differ by less than 896; trained ones differ by
tens."""

MASK_MODES = ("bias", "binary", "log")


@dataclass(frozen=True)
class KeySelection:
    """Which keys a masked self-attention reads, and how their scores are biased.

    Attributes:
        index: ``[B, K]`` positions of the keys in the token grid, or None for all of them.
        bias: ``[B, K]`` added to the scores, 0 at each row's best key; None where all are 0.
    """

    index: torch.Tensor | None
    bias: torch.Tensor | None

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """Picks the selected tokens, ``[B, N, C] -> [B, K, C]``."""
        if self.index is None:
            return tokens
        if len(tokens) == 1:
            return tokens.index_select(1, self.index[0])
        return tokens.gather(1, self.index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def score_bias(keep: torch.Tensor, mode: str = "bias") -> torch.Tensor:
    """Turns a map of what to attend to into a bias on the attention scores.

    Args:
        keep: Values in [0, 1]; 1 is attended to.
        mode: ``"bias"``: ``(1 - keep) * -10000``, the reference: of a heat map only the peaks
            survive. ``"binary"``: the same of ``keep >= 0.5``. ``"log"``: ``log(keep)``, with
            which a key's weight is scaled by ``keep``.

    Raises:
        ConfigError: Unknown mode.
    """
    if mode == "bias":
        return (1 - keep) * MASK_BIAS
    if mode == "binary":
        return (keep < 0.5).to(keep) * MASK_BIAS
    if mode == "log":
        return keep.log().clamp(min=MASK_BIAS)
    raise ConfigError(f"attention_mask_mode is one of {', '.join(MASK_MODES)}; got {mode!r}.")


def select_keys(keep: torch.Tensor, mode: str = "bias", all_keys: bool = False) -> KeySelection:
    """Finds the keys that a masked self-attention has to read.

    A bias that is the same for all keys of a row cancels in the softmax; so each row is shifted
    to have its best key at 0. That keeps digits and makes an empty mask plain attention. Keys
    that end below `DEAD_BIAS` have no influence and are left out, which is exact and saves
    their share of the work.

    Args:
        keep: ``[B, N]`` in [0, 1], one row a picture, shared by all heads and queries.
        mode: See `score_bias`.
        all_keys: Leave none out, so that no shape depends on the data, as compiled code needs it.
    """
    bias = score_bias(keep.float(), mode)
    bias = bias - bias.amax(dim=1, keepdim=True)
    if all_keys or torch.compiler.is_compiling():
        return KeySelection(index=None, bias=bias)
    count = int((bias > DEAD_BIAS).sum(dim=1).max())
    index = None
    if count < bias.shape[1]:
        # Rows with fewer live keys take dead ones too; their bias still gives them weight 0.
        index = bias.topk(count, dim=1).indices.sort(dim=1).values
        bias = bias.gather(1, index)
    return KeySelection(index=index, bias=bias if bool(bias.any()) else None)


@dataclass(frozen=True)
class AttentionContext:
    """What the attention layers of one forward pass read besides their hidden states.

    Attributes:
        visual_tokens: ``[B, h * w, cross_attention_dim]`` tokens of the visual prompt.
        keys: For each level's number of tokens, the keys of its masked self-attention; empty
            where attention is not masked.
    """

    visual_tokens: torch.Tensor | None = None
    keys: dict[int, KeySelection] = field(default_factory=dict)


def build_key_selections(
    prompt: torch.Tensor,
    grid: tuple[int, int],
    num_levels: int,
    mode: str = "bias",
    all_keys: bool = False,
) -> dict[int, KeySelection]:
    """Prepares the masks of all levels of the U-Net.

    The prompt is resized to the latent grid and from there to each level's, both by nearest, as
    the reference does: a direct resize would pick other pixels.

    Args:
        prompt: ``[B, 1, H, W]`` in [-1, 1].
        grid: Height and width of the latents.
        num_levels: Number of resolutions in the U-Net; each halves the grid.
        mode: See `score_bias`.
        all_keys: See `select_keys`.

    Returns:
        The selection by number of tokens.
    """
    keep = F.interpolate((prompt.float() + 1) / 2, size=grid, mode="nearest")  # [-1, 1] -> [0, 1]
    selections = {}
    for level in range(num_levels):
        size = (-(-grid[0] // 2**level), -(-grid[1] // 2**level))
        at_level = F.interpolate(keep, size=size, mode="nearest").flatten(1)  # [B, n]
        selections[at_level.shape[1]] = select_keys(at_level, mode, all_keys)
    return selections


class MattingAttnProcessor(AttnProcessor2_0):
    """Scaled dot-product attention that reads a `AttentionContext`.

    Args:
        masked: For self-attention: only the prompted keys are read.
        visual: For cross-attention: the visual prompt's tokens replace the text embedding.
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
        """Attends; the signature is the one that diffusers' `Attention` calls."""
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
