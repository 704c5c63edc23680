"""What the settings of a model can be."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from SDMatte.errors import ConfigError
from SDMatte.modeling.attention import MASK_MODES
from SDMatte.modeling.unet import SECTIONS
from SDMatte.prompts.types import PROMPT_TYPES

logger = logging.getLogger(__name__)

IDLE_SETTINGS = ("add_noise", "num_inference_steps", "use_dis_loss", "use_encoder_attention_mask")
"""Those of the published configs that do nothing in the reference."""

_SWITCHES = (
    *("use_aux_input", "use_coor_input", "use_opacity_input", "use_attention_mask"),
    *("use_encoder_hidden_states", "residual_connection"),
)
_PROMPT_LISTS = ("aux_input_list", "attn_mask_aux_input")
_SECTION_LISTS = ("use_attention_mask_list", "use_encoder_hidden_states_list")


def check_settings(settings: Mapping[str, Any], idle: Mapping[str, Any]) -> None:
    """Sees that a model can be built with its settings; warns about those without effect.

    Args:
        settings: Arguments of `SDMatte.modeling.sdmatte.SDMatte`, by name.
        idle: All others that were given.

    Raises:
        ConfigError: One is unknown, of another kind, or cannot work.
    """
    unknown = sorted(idle.keys() - set(IDLE_SETTINGS))
    if unknown:
        raise ConfigError(f"Unknown model setting: {', '.join(unknown)}.")
    for name, value in idle.items():
        if value:
            logger.warning("%s=%r does nothing, as in the reference.", name, value)
    for name in _SWITCHES:  # a word such as "no" would be true
        if not isinstance(settings[name], bool):
            raise ConfigError(f"{name} is True or False; got {settings[name]!r}.")
    if not settings["use_aux_input"]:
        raise ConfigError("use_aux_input=False cannot work: the model needs a visual prompt.")
    if settings["conv_scale"] != 3:
        raise ConfigError(
            f"conv_scale={settings['conv_scale']} cannot work: the U-Net's input is the image's "
            f"and the prompt's latent, for which it is 3 (with one place for noise, unused)."
        )
    prompts = [] if settings["aux_input"] is None else [settings["aux_input"]]
    for name in _PROMPT_LISTS:
        if not _is_list(settings[name]):
            raise ConfigError(f"{name} is a list of prompts; got {settings[name]!r}.")
        prompts += settings[name]
    if not settings["aux_input_list"]:
        raise ConfigError("aux_input_list is empty; None is the model's own.")
    for prompt in prompts:
        if prompt not in PROMPT_TYPES:
            raise ConfigError(
                f"Unknown prompt {prompt!r} in the model's settings; known are "
                f"{', '.join(PROMPT_TYPES)}."
            )
    for name in _SECTION_LISTS:
        values = settings[name]
        if (
            not _is_list(values)
            or len(values) != len(SECTIONS)
            or not all(isinstance(value, bool) for value in values)
        ):
            raise ConfigError(
                f"{name} has one value, True or False, for each of {', '.join(SECTIONS)}; got "
                f"{values!r}."
            )
    if settings["attention_mask_mode"] not in MASK_MODES:
        raise ConfigError(
            f"attention_mask_mode is one of {', '.join(MASK_MODES)}; got "
            f"{settings['attention_mask_mode']!r}."
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | Mapping)
