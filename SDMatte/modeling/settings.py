"""The settings of a model."""

import logging
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from SDMatte.modeling.attention import MaskMode
from SDMatte.modeling.unet import SECTIONS
from SDMatte.prompts.types import PROMPT_TYPES
from SDMatte.runtime.schema import Settings

logger = logging.getLogger(__name__)

IGNORED_SETTINGS = (
    "add_noise",
    "num_inference_steps",
    "use_dis_loss",
    "use_encoder_attention_mask",
)
"""Settings of the published configs that have no effect in the reference."""


def _check_prompt(name: str) -> str:
    if name not in PROMPT_TYPES:
        raise ValueError(f"must be one of {', '.join(PROMPT_TYPES)}")
    return name


def _as_prompts(value: Any) -> tuple:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError("must be a list of prompts")
    return tuple(value)


def _check_not_empty(value: tuple) -> tuple:
    if not value:
        raise ValueError("must name at least one prompt")
    return value


def _as_sections(value: Any) -> tuple:
    is_list = isinstance(value, Sequence) and len(value) == len(SECTIONS)
    if not is_list or not all(isinstance(item, bool) for item in value):
        raise ValueError(f"must be a list of True or False for each of {', '.join(SECTIONS)}")
    return tuple(value)


PromptName = Annotated[str, AfterValidator(_check_prompt)]
PromptNames = Annotated[tuple[PromptName, ...], BeforeValidator(_as_prompts)]
PromptMix = Annotated[PromptNames, AfterValidator(_check_not_empty)]
Sections = Annotated[tuple[bool, bool, bool], BeforeValidator(_as_sections)]


class ModelSettings(Settings):
    """Settings of `SDMatte.modeling.sdmatte.SDMatte`, under the names of the published configs.

    `IGNORED_SETTINGS` are accepted and dropped with a warning.

    Attributes:
        conv_scale: Always 3: `conv_in` takes the latents of image and prompt; the third, noise,
            is unused.
        aux_input: The prompt to use, a key of `SDMatte.prompts.types.PROMPT_TYPES`. None: one of
            `aux_input_list` drawn at each training step; points in evaluation.
        aux_input_list: Prompts to draw from in training; repeats act as weights. None: the default.
        use_aux_input: Always True: the network needs a visual prompt.
        use_coor_input: False: boxes are embedded as 0, 0, 1, 1 and points as zeros.
        use_opacity_input: False: every object is embedded as opaque.
        use_attention_mask: False: self-attention is never masked.
        attn_mask_aux_input: Prompts that mask self-attention.
        use_attention_mask_list: Whether self-attention is masked in the down, mid and up section.
        attention_mask_mode: How the prompt's map becomes a mask; see
            `SDMatte.modeling.attention.score_bias`.
        use_encoder_hidden_states: False: cross-attention reads the text embedding everywhere.
        use_encoder_hidden_states_list: Whether cross-attention reads the visual tokens rather than
            the text embedding, in the down, mid and up section.
        residual_connection: Give the self-attentions of the first level a residual of their own.
    """

    conv_scale: Literal[3] = 3
    aux_input: PromptName | None = "bbox_mask"
    aux_input_list: PromptMix = ("point_mask", "bbox_mask", "mask")
    use_aux_input: Literal[True] = True
    use_coor_input: bool = True
    use_opacity_input: bool = True
    use_attention_mask: bool = True
    attn_mask_aux_input: PromptNames = ("point_mask", "bbox_mask", "mask")
    use_attention_mask_list: Sections = (True, True, True)
    attention_mask_mode: MaskMode = "bias"
    use_encoder_hidden_states: bool = True
    use_encoder_hidden_states_list: Sections = (False, True, False)
    residual_connection: bool = False

    @property
    def training_prompts(self) -> tuple[str, ...]:
        """Prompts to draw from in training."""
        return self.aux_input_list if self.aux_input is None else (self.aux_input,)

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in IGNORED_SETTINGS:
            if values.get(name):
                logger.warning("%s=%r has no effect, as in the reference.", name, values[name])
        kept = {name: value for name, value in values.items() if name not in IGNORED_SETTINGS}
        if kept.get("aux_input_list", ()) is None:
            del kept["aux_input_list"]
        return kept
