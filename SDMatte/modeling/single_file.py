"""Read Stable Diffusion v2 from its original format: all components in a single file."""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from SDMatte.errors import CheckpointError, MissingCheckpointError, first_line
from SDMatte.modeling import hub, weights

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = "LongfeiHuang/SDMatte"
"""Source of the configs and the tokenizer, which a single file lacks."""

SD2_CROSS_ATTENTION_DIM = 1024
_CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def find_config(source: str | Path, config: str | Path | None = None) -> Path:
    """Find the folder with the configs and the tokenizer for a single file.

    It is `config` (a folder or hub id), else the file's own folder or repository if it has them,
    else `DEFAULT_CONFIG`.
    """
    hub_name = None if Path(source).is_file() else hub.HubName.parse(source)
    own = Path(source).parent if hub_name is None else hub_name.model
    folder = None
    if config is None:
        try:
            folder = hub.resolve_folder(own)
        except CheckpointError:
            logger.info("Using the configs and the tokenizer of %s.", DEFAULT_CONFIG)
    try:
        folder = folder or hub.resolve_folder(config or DEFAULT_CONFIG)
    except MissingCheckpointError as error:
        raise MissingCheckpointError(
            f"{error} The single file {source} needs a folder with component configs and a "
            f"tokenizer: name one with --config."
        ) from error
    if not (folder / "tokenizer").is_dir():
        raise CheckpointError(f"{folder} has no tokenizer/: name another folder with --config.")
    return folder


def read_single_file(
    path: Path, config_folder: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, torch.Tensor]]]:
    """Read a single file and rename its tensors as in diffusers and transformers.

    Returns:
        Configs and tensors by component.

    Raises:
        CheckpointError: The file is damaged, is not Stable Diffusion v2 in this format, or does
            not fit the configs.
    """
    logger.info("Reading %s ...", path)
    original = weights.read_tensors(path)
    if _CROSS_ATTENTION not in original:
        raise CheckpointError(
            f"{path} is {weights.identify_model(original)}; it must be Stable Diffusion v2 in its "
            f"original one-file format, with U-Net, autoencoder and text encoder."
        )
    check_cross_attention(str(path), original[_CROSS_ATTENTION].shape[-1])
    configs = {name: weights.component_config(config_folder, name) for name in hub.COMPONENTS}
    try:
        with init_empty_weights():
            vae = AutoencoderKL.from_config(configs["vae"])
            text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
        tensors = {
            "unet": convert_ldm_unet_checkpoint(original, configs["unet"]),
            "vae": convert_ldm_vae_checkpoint(original, configs["vae"]),
            "text_encoder": convert_open_clip_checkpoint(text_encoder, original),
        }
    except Exception as error:  # on invalid configs, the libraries raise arbitrary errors
        raise CheckpointError(
            f"{path} does not fit the configs in {config_folder} ({first_line(error)})."
        ) from error
    tensors["text_encoder"].pop("text_projection.weight", None)  # not in CLIPTextModel
    for name, model in (("vae", vae), ("text_encoder", text_encoder)):
        _check_fit(model, tensors[name], f"{name} in {path}", config_folder / name)
    return configs, tensors


def check_cross_attention(source: str, dim: int | None) -> None:
    """Raise a `CheckpointError` if a U-Net's `cross_attention_dim` is not Stable Diffusion v2's."""
    if dim != SD2_CROSS_ATTENTION_DIM:
        kind = "Stable Diffusion 1.x" if dim == 768 else "of another model"
        raise CheckpointError(
            f"{source} is {kind} (cross_attention_dim {dim}); SDMatte needs Stable Diffusion v2 or "
            f"BK-SDM v2 ({SD2_CROSS_ATTENTION_DIM})."
        )


def _check_fit(
    model: nn.Module, tensors: dict[str, torch.Tensor], source: str, config: Path
) -> None:
    """Compare names and shapes, ignoring the `text_model.` level that transformers 5 dropped."""
    expected, given = (
        {name.removeprefix(weights.TEXT_LEVEL): value for name, value in state_dict.items()}
        for state_dict in (model.state_dict(), tensors)
    )
    for state_dict in (expected, given):  # a constant that old transformers versions saved
        state_dict.pop("embeddings.position_ids", None)
    problems = weights.find_mismatches(expected, given)
    if problems:
        raise CheckpointError(f"The {source} does not fit {config / 'config.json'}: {problems}.")
