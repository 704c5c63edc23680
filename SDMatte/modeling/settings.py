"""The settings of a model."""

import logging
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from SDMatte.modeling.attention import MaskMode
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


PromptName = Annotated[str, AfterValidator(_check_prompt)]
PromptNames = Annotated[tuple[PromptName, ...], Field(strict=False)]
PromptMix = Annotated[PromptNames, Field(min_length=1)]
Sections = Annotated[tuple[bool, bool, bool], Field(strict=False)]


class ModelSettings(Settings):
    """Settings of `SDMatte.modeling.sdmatte.SDMatte`, under the names of the published configs.

    `IGNORED_SETTINGS` are accepted and dropped with a warning.
    """

    conv_scale: Literal[3] = Field(
        3,
        description="Latents counted in the published U-Net input: image, prompt and unused noise.",
    )
    aux_input: PromptName | None = Field(
        "bbox_mask",
        description="Prompt to use. Null: draw from `aux_input_list` in training, use points in "
        "evaluation.",
    )
    aux_input_list: PromptMix = Field(
        ("point_mask", "bbox_mask", "mask"),
        description="Prompts to draw from in training; repeats act as weights.",
    )
    use_aux_input: Literal[True] = Field(True, description="Always true: a prompt is required.")
    use_coor_input: bool = Field(
        True, description="Embed the coordinates; if false, boxes are 0, 0, 1, 1 and points zeros."
    )
    use_opacity_input: bool = Field(
        True, description="Embed the opacity; if false, every object is treated as opaque."
    )
    use_attention_mask: bool = Field(True, description="Mask self-attention by the prompt.")
    attn_mask_aux_input: PromptNames = Field(
        ("point_mask", "bbox_mask", "mask"), description="Prompts that mask self-attention."
    )
    use_attention_mask_list: Sections = Field(
        (True, True, True),
        description="Whether to mask self-attention in the down, mid and up sections.",
    )
    attention_mask_mode: MaskMode = Field(
        "bias",
        description="How to convert the prompt's map to a mask; see "
        "`SDMatte.modeling.attention.score_bias`.",
    )
    use_encoder_hidden_states: bool = Field(
        True,
        description="Let cross-attention read the visual tokens; if false, it reads the text in "
        "all sections.",
    )
    use_encoder_hidden_states_list: Sections = Field(
        (False, True, False),
        description="Whether cross-attention reads the visual tokens rather than the text in the "
        "down, mid and up sections.",
    )
    residual_connection: bool = Field(
        False,
        description="Add a residual connection to the self-attentions of the first level.",
    )
    image_prior: str | None = Field(
        None,
        description="timm image encoder that guides the U-Net of a small model; see "
        "`SDMatte.modeling.prior`. Null: none, as published.",
    )

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
