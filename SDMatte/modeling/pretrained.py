"""Preparing Stable Diffusion's weights for SDMatte, the work of `process_weight.py`."""

import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import init_empty_weights

from SDMatte.errors import CheckpointError, ConfigError, OutputError, SDMatteError
from SDMatte.modeling import hub, weights
from SDMatte.modeling.single_file import check_cross_attention, find_config, read_single_file
from SDMatte.modeling.surgery import COORDINATE_LAYERS, CoordinateInit, coordinate_weights
from SDMatte.modeling.unet import COORDINATE_SETTINGS, SDMatteUNet

logger = logging.getLogger(__name__)

FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor")
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
"""Files of the components' weights."""


@dataclass
class Pretrained:
    """Stable Diffusion's weights.

    Attributes:
        unet_source: Name of the U-Net's weights in messages.
        unet_config: Config of the U-Net.
        unet: Weights of the U-Net.
        write_others: Writes the other components into a folder, except for those named.
    """

    unet_source: str
    unet_config: dict[str, Any]
    unet: dict[str, torch.Tensor]
    write_others: Callable[[Path, Collection[str]], None]


def process_pretrained(
    source: str | Path,
    output: str | Path,
    vae: str | Path | None = None,
    init: CoordinateInit = "default",
    config: str | Path | None = None,
) -> Path:
    """Add what the U-Net of SDMatte needs to Stable Diffusion v2.

    The three coordinate settings are added to `unet/config.json` and the eight tensors of the
    coordinate embeddings to the U-Net's weights, in their type; sizes follow from the config.

    Args:
        source: Stable Diffusion v2 or BK-SDM v2 base, as a folder in diffusers layout or its hub
            id; or Stable Diffusion v2 as the original single file, local or on the hub.
        output: The folder to write; new or empty.
        vae: A TAESD folder or hub id that replaces the autoencoder, for LiteSDMatte.
        init: Initialization of the new tensors; see `SDMatte.modeling.surgery.coordinate_weights`.
        config: For a single file, the folder or hub id with the component configs and the
            tokenizer; see `SDMatte.modeling.single_file.find_config`.

    Returns:
        The processed folder.

    Raises:
        MissingCheckpointError: The source does not exist, or the hub cannot provide it.
        CheckpointError: The folder or its weights are invalid; nothing was written.
        OutputError: The output exists, or is in a folder that is read.
    """
    if init not in get_args(CoordinateInit):
        raise ConfigError(f"init must be 'default' or 'zeros'; got {init!r}.")
    target = Path(output)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise OutputError(f"{target} exists: choose another output folder, or remove it.")
    for read in (source, vae):
        if read is not None and target.resolve().is_relative_to(Path(read).resolve()):
            raise OutputError(f"{target} is in {read}, which is read: choose another output.")
    replaced = () if vae is None else ("vae",)
    path = hub.resolve_pretrained(source, replaced)
    vae_folder = None if vae is None else _find_tiny_vae(vae)
    if path.is_file():
        pretrained = _read_file(path, find_config(source, config))
    elif config is None:
        pretrained = _read_folder(path)
    else:
        raise ConfigError("--config is for a single file; a folder has its own configs.")
    new = _make_coordinate_weights(pretrained, init)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
    try:
        partial.mkdir(parents=True)
        pretrained.write_others(partial, replaced)
        unet_config = {**COORDINATE_SETTINGS, **pretrained.unet_config}
        _write_component(partial, "unet", unet_config, {**pretrained.unet, **new})
        if vae_folder is not None:
            (partial / "vae").mkdir()
            for file in (vae_folder / "config.json", *_weight_files(vae_folder)):
                shutil.copy2(file, partial / "vae" / file.name)
        partial.replace(target)
    except SDMatteError:
        raise
    except OSError as error:  # such as a full disk
        raise OutputError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("Added %d settings to unet/config.json.", len(COORDINATE_SETTINGS))
    for name, value in new.items():
        state = "random" if value.any() else "zero"
        logger.info("Added %-34s %-14s %s", name, list(value.shape), state)
    logger.info("%s is ready to be the model's pretrained folder.", target)
    return target


def _find_tiny_vae(name: str | Path) -> Path:
    folder = hub.resolve_component(name)
    config = weights.component_config(folder.parent, folder.name)
    if config.get("_class_name") != "AutoencoderTiny":
        raise CheckpointError(
            f"{folder} is not a TAESD folder: the class in its config is not AutoencoderTiny."
        )
    return folder


def _read_file(path: Path, config_folder: Path) -> Pretrained:
    configs, tensors = read_single_file(path, config_folder)
    unet = tensors.pop("unet")

    def write_others(folder: Path, replaced: Collection[str]) -> None:
        for name in sorted(tensors.keys() - set(replaced)):
            _write_component(folder, name, configs[name], tensors[name])
        for name in ("tokenizer", "scheduler"):
            if (config_folder / name).is_dir():
                shutil.copytree(config_folder / name, folder / name)

    return Pretrained(str(path), configs["unet"], unet, write_others)


def _read_folder(path: Path) -> Pretrained:
    config = weights.component_config(path, "unet")
    check_cross_attention(str(path / "unet"), config.get("cross_attention_dim"))
    others = [name for name in FOLDERS if name != "unet" and (path / name).is_dir()]

    def write_others(folder: Path, replaced: Collection[str]) -> None:
        for name in others:
            if name not in replaced:
                logger.info("Copying %s/ ...", name)
                shutil.copytree(path / name, folder / name)
        if (path / "model_index.json").is_file():
            shutil.copy2(path / "model_index.json", folder / "model_index.json")

    unet = read_unet_weights(path / "unet")
    return Pretrained(str(path / "unet"), config, unet, write_others)


def read_unet_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read U-Net weights: `.safetensors` or `.bin`, one file or sharded, fp32 or fp16.

    Raises:
        CheckpointError: The weights are missing or damaged.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        if path.suffix != ".json":
            tensors |= weights.read_tensors(path)
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """Find a component's weights, and their index if they are sharded."""
    files = hub.choose_weights([path.name for path in folder.iterdir()], "")
    if not files:
        raise CheckpointError(
            f"{folder} has no weights (diffusion_pytorch_model.safetensors or .bin)."
        )
    return [folder / name for name in files]


def _make_coordinate_weights(
    pretrained: Pretrained, init: CoordinateInit
) -> dict[str, torch.Tensor]:
    """Create the missing coordinate embeddings, after checking the other weights."""
    with init_empty_weights():
        unet = SDMatteUNet.from_config(pretrained.unet_config)
    expected, tensors = unet.state_dict(), pretrained.unet
    ours = {n: v.shape for n, v in expected.items() if n.split(".")[0] in COORDINATE_LAYERS}
    missing = ours.keys() - tensors.keys()
    problems = weights.find_mismatches(
        {name: value for name, value in expected.items() if name not in missing}, tensors
    )
    if problems:
        raise CheckpointError(
            f"The weights in {pretrained.unet_source} do not fit its config.json: {problems}."
        )
    new = coordinate_weights(ours, init, tensors["conv_in.weight"].dtype)
    return {name: new[name] for name in new if name in missing}


def _write_component(
    folder: Path, name: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    logger.info("Writing %s/ ...", name)
    weights.write_tensors(tensors, folder / name / FILES[name])
    weights.write_json(folder / name / "config.json", config)
