"""Model folders: weights, constructor arguments and component configs in one place."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import nn

from SDMatte.errors import CheckpointError, ConfigError
from SDMatte.modeling import hub, weights
from SDMatte.runtime.files import replace_file, write_text

if TYPE_CHECKING:
    from SDMatte.modeling.sdmatte import SDMatte

WEIGHTS_FILE = "model.safetensors"
WIDE = 128
"""Autoencoders without layers of that many channels stay in float32: in bfloat16 they are slower on
a CPU, and the small model's, whose latents are whitened, is coarse."""


def save_model(
    model: "SDMatte",
    folder: Path,
    arguments: Mapping[str, Any],
    inference: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model folder; see `SDMatte.save_pretrained`."""
    if model.text_encoder.device.type == "meta":
        raise ConfigError("This model was loaded without its text encoder: it cannot be saved.")
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    with replace_file(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    # The config is of the pretrained U-Net, whose input is widened when the model is built.
    unet = {**model.unet.config, "in_channels": model.unet.aux_conv_in.in_channels}
    configs = {
        "unet": unet,
        "vae": model.vae.config,
        "text_encoder": model.text_encoder.config.to_dict(),
    }
    for name, config in configs.items():
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        class_name = type(model.get_submodule(name)).__name__
        _write_json(folder / name / "config.json", {**config, "_class_name": class_name})
    model.tokenizer.save_pretrained(folder / "tokenizer")
    content = {"model": type(model).__name__, "arguments": dict(arguments)}
    if inference:
        content["inference"] = dict(inference)
    _write_json(folder / hub.MODEL_CARD, content)


def load_model(
    cls: type["SDMatte"],
    path_or_hub_id: str | Path,
    checkpoint: str | Path | None,
    dtype: torch.dtype,
    arguments: Mapping[str, Any],
) -> "SDMatte":
    """Loads a model folder; see `SDMatte.from_pretrained`."""
    folder = hub.resolve_folder(path_or_hub_id)
    saved = read_model_card(folder)
    if saved.get("model", cls.__name__) != cls.__name__:
        raise CheckpointError(f"{folder} holds a {saved['model']}, not a {cls.__name__}.")
    path = hub.resolve_checkpoint(path_or_hub_id, checkpoint)
    with init_empty_weights(include_buffers=False):
        settings = {**saved.get("arguments", {}), **arguments, "load_weight": False}
        model = cls(folder, **settings, dtype=dtype)
    if _widest(model.vae.config) < WIDE:
        nn.Module.to(model.vae, torch.float32)
    weights.assign_checkpoint(model, path)
    return model.eval()


def _widest(config: Mapping[str, Any]) -> int:
    names = ("block_out_channels", "encoder_block_out_channels")
    return max(channels for name in names for channels in config.get(name, [0]))


def read_model_card(folder: Path) -> dict[str, Any]:
    """Reads what `save_model` noted of a model; empty for a folder without it.

    Returns:
        ``model``, the class; ``arguments`` of its constructor; ``inference``, settings of
        `SDMatte.inference.loading.InferenceDefaults`. Each may be missing.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / hub.MODEL_CARD
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    parts = ("arguments", "inference")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part, {}), dict) for part in parts
    ):
        raise CheckpointError(f"{path} is not the description of a model.")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
