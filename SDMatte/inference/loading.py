"""Find and load models: published, saved, or from a training run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from SDMatte.errors import CheckpointError, ConfigError, MissingCheckpointError
from SDMatte.inference.defaults import InferenceDefaults
from SDMatte.modeling import LiteSDMatte, SDMatte, hub, weights
from SDMatte.runtime.devices import choose_dtype

RUN_CONFIG = "config.yaml"
BOXES_ONLY_STEM = "SDMatte_plus"
"""File name prefix of the published checkpoint of SDMatte*, which was trained with boxes only, and
of its copies."""

_WIDE = 512
_CLASSES: dict[str, type[SDMatte]] = {"SDMatte": SDMatte, "LiteSDMatte": LiteSDMatte}


@dataclass(frozen=True)
class ModelSource:
    """Where a model is stored and how to build it.

    Attributes:
        model_class: `SDMatte` or `LiteSDMatte`.
        folder: Folder or hub id of the component configs.
        checkpoint: File of the weights.
        arguments: Constructor arguments, besides those saved in the folder.
        defaults: How the model processes images.
    """

    model_class: type[SDMatte]
    folder: str | Path
    checkpoint: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    defaults: InferenceDefaults = InferenceDefaults()

    def load(self, device: torch.device, dtype: str | torch.dtype = "auto") -> SDMatte:
        """Load the model onto the CPU, reading its weights directly into the given dtype.

        Args:
            device: Device that the model will run on, for ``dtype="auto"``.
            dtype: See `choose_dtype`.

        Raises:
            CheckpointError: The weights are missing or do not fit.
            ConfigError: The dtype or an argument is invalid.
        """
        folder = hub.resolve_folder(self.folder)
        channels = weights.component_config(folder, "unet").get("block_out_channels", ())
        dtype = choose_dtype(dtype, device, wide=max(channels, default=0) >= _WIDE)
        return self.model_class.from_pretrained(folder, self.checkpoint, dtype, **self.arguments)


def find_model(path_or_hub_id: str | Path, checkpoint: str | Path | None = None) -> ModelSource:
    """Determine which model a path or a hub id holds, fetching it from the hub if necessary.

    Args:
        path_or_hub_id: One of

            - a folder or hub id with component configs and a checkpoint beside them, as published
              or as written by ``save_pretrained``;
            - the output folder of a training run;
            - a checkpoint in one of these, as FOLDER/FILE or OWNER/NAME/FILE.
        checkpoint: Path of a checkpoint, or its name in the folder. None: the usual one.

    Raises:
        CheckpointError: No model was found.
        ConfigError: Two checkpoints are given.
    """
    path = Path(path_or_hub_id)
    hub_name = None if path.exists() else hub.HubName.parse(path_or_hub_id)
    name: str | Path = path_or_hub_id
    file: str | Path | None = None
    if path.is_file():
        name, file = path.parent, path.absolute()
    elif hub_name is not None and hub_name.file is not None:
        name, file = hub_name.model, hub_name.file
    elif hub_name is None and path.suffix in hub.CHECKPOINT_SUFFIXES and not path.is_dir():
        raise MissingCheckpointError(f"Checkpoint file {path} not found.")
    if file is not None and checkpoint is not None:
        raise ConfigError(f"{path} and {checkpoint} are two checkpoints: give only one.")
    file = file or checkpoint
    folder = Path(name)
    if not folder.is_dir() or (folder / "unet").is_dir():
        return _find_in_folder(name, file)
    if (folder / RUN_CONFIG).is_file():
        return _find_in_run(folder, file)
    if "onnx" in weights.read_model_card(folder):
        raise CheckpointError(f"{path} is an exported model, which can only predict.")
    raise CheckpointError(
        f"{path} is not a model: {'its folder' if path.is_file() else 'it'} has neither component "
        f"configs (unet/, vae/, ...) nor the {RUN_CONFIG} of a training run."
    )


def _find_in_folder(name: str | Path, checkpoint: str | Path | None) -> ModelSource:
    """Return the model of a folder or hub id with component configs."""
    folder = hub.resolve_folder(name)
    card = weights.read_model_card(folder)
    tiny = weights.component_config(folder, "vae").get("_class_name") == "AutoencoderTiny"
    model_class = _class_of(card.get("model", "LiteSDMatte" if tiny else "SDMatte"), folder)
    defaults = _read_defaults(card.get("inference", {}), folder)
    file = hub.resolve_checkpoint(name, checkpoint)
    arguments = {}
    if file.stem.startswith(BOXES_ONLY_STEM):
        arguments = {"aux_input": "bbox_mask", "aux_input_list": ["bbox_mask"]}
    return ModelSource(model_class, folder, file.absolute(), arguments, defaults)


def _find_in_run(folder: Path, checkpoint: str | Path | None) -> ModelSource:
    """Return the model of a training run, with the inference defaults of the run's tests."""
    path = folder / RUN_CONFIG
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        arguments = dict(config["model"])
        test = config["dataloader"]["test"]["dataset"]
        settings = test.get("settings") or {}
        class_path = arguments.pop("_target_")
        pretrained = arguments.pop("pretrained_model_name_or_path")
        defaults = {
            "resolution": test["size"],
            "keep_aspect": settings.get("keep_aspect") or False,
            "point_radius": settings.get("point_radius"),
            "psm": settings.get("psm") or "gauss",
        }
    except (OSError, YAMLError, OmegaConfBaseException, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path} is not the config of a training run: {e!r}.") from e
    arguments.pop("load_weight", None)
    return ModelSource(
        _class_of(str(class_path).rpartition(".")[2], path),
        pretrained,
        hub.resolve_checkpoint(folder, checkpoint or hub.FINAL_CHECKPOINT).absolute(),
        arguments,
        _read_defaults(defaults, path),
    )


def _read_defaults(values: Mapping[str, Any], source: Path) -> InferenceDefaults:
    try:
        return InferenceDefaults.of(values, "inference")
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _class_of(name: str, source: Path) -> type[SDMatte]:
    if not isinstance(name, str) or name not in _CLASSES:
        raise CheckpointError(
            f"{source} holds a model of class {name}; it must be {' or '.join(_CLASSES)}."
        )
    return _CLASSES[name]


def offload_model(model: SDMatte, device: torch.device) -> None:
    """Keep a model on the CPU; the autoencoder and the U-Net take turns on the device.

    The device needs memory for the larger of the two, and every prompt moves both. The text encoder
    runs once, on the CPU.
    """
    _, vae_hook = cpu_offload_with_hook(model.vae, device)
    _, unet_hook = cpu_offload_with_hook(model.unet, device, prev_module_hook=vae_hook)
    vae_hook.hook.prev_module_hook = unet_hook
    if model.image_prior is not None:
        cpu_offload_with_hook(model.image_prior, device)
    # The model calls this layer directly, before the U-Net.
    cpu_offload_with_hook(model.get_submodule("unet.aux_conv_in"), device)
