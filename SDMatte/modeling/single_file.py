"""Stable Diffusion v2 as its authors published it: all parts in one file, under other names."""

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
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
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from SDMatte.errors import CheckpointError, MissingCheckpointError
from SDMatte.modeling import hub, weights

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = "LongfeiHuang/SDMatte"
"""Where the configs and the tokenizer come from, which a single file does not have."""

_FILES = {"vae": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}
_CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_CONTEXT_WIDTH = 1024


@dataclass(frozen=True)
class Parts:
    """A single file in diffusers' names.

    Attributes:
        config_folder: The folder with component configs and tokenizer.
        configs: By component.
        weights: Tensors by name, by component.
    """

    config_folder: Path
    configs: Mapping[str, dict[str, Any]]
    weights: dict[str, dict[str, torch.Tensor]]

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(v.nbytes for tensors in self.weights.values() for v in tensors.values())

    def write(self, folder: Path, replaced: Collection[str] = ()) -> None:
        """Write all but the U-Net in diffusers layout.

        Args:
            folder: Where to.
            replaced: Components to leave out.
        """
        for name, file in _FILES.items():
            if name in replaced:
                continue
            logger.info("Writing %s/ ...", name)
            (folder / name).mkdir()
            tensors = {key: value.contiguous() for key, value in self.weights[name].items()}
            save_file(tensors, folder / name / file, metadata={"format": "pt"})
            text = json.dumps(self.configs[name], indent=2, sort_keys=True) + "\n"
            (folder / name / "config.json").write_text(text, encoding="utf-8")
        for name in ("tokenizer", "scheduler"):
            if (self.config_folder / name).is_dir():
                shutil.copytree(self.config_folder / name, folder / name)


def find_config(source: str | Path, config: str | Path | None = None) -> Path:
    """Find the folder with the configs and the tokenizer for a single file.

    Args:
        source: The file, or its name on the hub.
        config: A folder or hub id; None: the file's own folder or repository if it has them, or
            else `DEFAULT_CONFIG`.

    Raises:
        MissingCheckpointError: It does not exist, or the hub cannot provide it.
        CheckpointError: It has no tokenizer.
    """
    hub_name = None if Path(source).is_file() else hub.HubName.parse(source)
    own = Path(source).parent if hub_name is None else hub_name.model
    folder = None
    if config is None:
        try:
            folder = hub.resolve_folder(own)
        except CheckpointError:
            logger.info("Configs and tokenizer are taken from %s.", DEFAULT_CONFIG)
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


def read(path: Path, config_folder: Path) -> Parts:
    """Read a single file and give its tensors the names of diffusers and transformers.

    Args:
        path: A ``.ckpt`` or ``.safetensors`` file; nothing but tensors is unpickled.
        config_folder: See `find_config`.

    Raises:
        CheckpointError: The file is damaged, is not Stable Diffusion v2 in this format, or does
            not fit the configs.
    """
    logger.info("Reading %s ...", path)
    tensors = weights.read_tensors(path)
    if _CONTEXT not in tensors:
        raise CheckpointError(
            f"{path} is {weights.describe_model(tensors)}; needed is Stable Diffusion v2 in its "
            f"original one-file format, with U-Net, autoencoder and text encoder."
        )
    width = tensors[_CONTEXT].shape[-1]
    if width != _CONTEXT_WIDTH:
        kind = "Stable Diffusion 1.x" if width == 768 else "another model"
        raise CheckpointError(
            f"{path} is {kind} (cross_attention_dim {width}); SDMatte needs Stable Diffusion v2 "
            f"({_CONTEXT_WIDTH})."
        )
    configs = {name: weights.component_config(config_folder, name) for name in hub.COMPONENTS}
    with init_empty_weights():
        vae = AutoencoderKL.from_config(configs["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"]))
    try:
        parts = {
            "unet": convert_ldm_unet_checkpoint(tensors, configs["unet"]),
            "vae": convert_ldm_vae_checkpoint(tensors, configs["vae"]),
            "text_encoder": convert_open_clip_checkpoint(text_encoder, tensors),
        }
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not fit the configs in {config_folder} ({error!r})."
        ) from error
    parts["text_encoder"].pop("text_projection.weight", None)  # CLIPTextModel has none
    for name, model in (("vae", vae), ("text_encoder", text_encoder)):
        _check_fit(model, parts[name], f"{name} in {path}", config_folder / name)
    return Parts(config_folder, configs, parts)


def _check_fit(model: nn.Module, tensors: dict, what: str, config: Path) -> None:
    """Compare names and shapes; transformers 5 dropped one level of the text encoder's names."""
    level = weights.TEXT_LEVEL
    wanted = {n.removeprefix(level): tuple(v.shape) for n, v in model.state_dict().items()}
    wanted.pop("embeddings.position_ids", None)  # a constant that old transformers versions saved
    given = {n.removeprefix(level): tuple(v.shape) for n, v in tensors.items() if v is not None}
    differing = [
        name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"The {what} does not fit {config / 'config.json'}: missing, unexpected or of another "
            f"shape are {weights.shorten(differing)}."
        )
