"""Finding and loading a model wherever it came from, and the defaults that come with it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from SDMatte.errors import CheckpointError, ConfigError, MissingCheckpointError
from SDMatte.modeling import LiteSDMatte, SDMatte, hub, weights
from SDMatte.modeling.saving import read_model_card
from SDMatte.runtime.devices import choose_dtype

logger = logging.getLogger(__name__)

RUN_CONFIG = "config.yaml"
BOXES_ONLY_STEM = "SDMatte_plus"
"""How the published file of SDMatte*, which was trained with boxes alone, and its copies begin."""

_WIDE = 512
_CLASSES: dict[str, type[SDMatte]] = {"SDMatte": SDMatte, "LiteSDMatte": LiteSDMatte}


@dataclass(frozen=True)
class InferenceDefaults:
    """How a model wants its pictures, unless the user says otherwise.

    Attributes:
        resolution: Side of the square that pictures are resized to.
        keep_aspect: Resize to as many pixels in the picture's own proportions instead.
        point_radius: Sigma of a point prompt's Gaussian at that resolution, in pixels.
    """

    resolution: int = 1024
    keep_aspect: bool = False
    point_radius: float = 35.0

    @classmethod
    def of(cls, settings: Mapping[str, Any], source: str) -> "InferenceDefaults":
        """Reads them from a file; ``point_radius`` follows the resolution if it is not given.

        Raises:
            CheckpointError: A setting is unknown or cannot be.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(settings.keys() - known)
        if unknown:
            raise CheckpointError(
                f"{source} has the unknown inference settings {', '.join(unknown)}; known are "
                f"{', '.join(sorted(known))}."
            )
        given = {name: value for name, value in settings.items() if value is not None}
        for name in ("resolution", "point_radius"):
            value = given.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise CheckpointError(f"{source}: {name} must be a number above 0, not {value!r}.")
        resolution = given.get("resolution", cls.resolution)
        radius = cls.point_radius * resolution / cls.resolution
        return cls(**{"point_radius": radius, **given})


@dataclass(frozen=True)
class ModelSource:
    """Where a model is and how it is built.

    Attributes:
        model_class: `SDMatte` or `LiteSDMatte`.
        folder: The folder or hub id with the component configs.
        checkpoint: The file with the weights.
        arguments: Of the constructor, beside those saved in the folder.
        defaults: How the model wants its pictures.
    """

    model_class: type[SDMatte]
    folder: str | Path
    checkpoint: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    defaults: InferenceDefaults = InferenceDefaults()

    def load(
        self, device: torch.device, dtype: str | torch.dtype = "auto", **arguments: Any
    ) -> SDMatte:
        """Builds the model on the CPU, each tensor read into its type, none drawn at random.

        Args:
            device: Where it is going to compute.
            dtype: See `choose_dtype`.
            **arguments: Of the constructor, in place of the model's own.

        Raises:
            CheckpointError: The weights are missing or do not fit.
            ConfigError: An argument or the type is unknown.
        """
        arguments = {**self.arguments, **arguments}
        folder = hub.resolve_folder(self.folder)
        channels = weights.component_config(folder, "unet").get("block_out_channels", ())
        dtype = choose_dtype(dtype, device, wide=max(channels, default=0) >= _WIDE)
        return self.model_class.from_pretrained(folder, self.checkpoint, dtype, **arguments)


def find_model(path_or_hub_id: str | Path, checkpoint: str | Path | None = None) -> ModelSource:
    """Finds out what a path or a hub id holds.

    Args:
        path_or_hub_id: A folder or hub id with component configs and a checkpoint beside them, as
            the authors published theirs or as ``save_pretrained`` writes it; the folder of a
            training run; or the checkpoint file in one of these, as FOLDER/FILE or OWNER/NAME/FILE.
        checkpoint: Which checkpoint, a file or a file's name in the folder.

    Raises:
        CheckpointError: There is no model.
        ConfigError: Two checkpoints are named.
    """
    path = Path(path_or_hub_id)
    if path.is_file():
        if checkpoint is not None:
            raise ConfigError(f"{path} is a checkpoint, and {checkpoint} another: name one.")
        if not _holds_model(path.parent):
            raise CheckpointError(
                f"{path} is not enough for a model: the folder of a checkpoint must also hold its "
                f"component configs (unet/, vae/, ...), or be a training run ({RUN_CONFIG})."
            )
        return find_model(path.parent, path.absolute())
    hub_name = None if path.is_dir() else hub.HubName.parse(path_or_hub_id)
    if hub_name is None and path.suffix in hub.CHECKPOINT_SUFFIXES and not path.is_dir():
        raise MissingCheckpointError(f"Checkpoint file {path} not found.")
    if hub_name is not None and hub_name.file is not None:
        if checkpoint is not None:
            raise ConfigError(f"{path} is a checkpoint, and {checkpoint} another: name one.")
        return find_model(hub_name.model, hub_name.file)
    if path.is_dir() and not _holds_model(path):
        raise CheckpointError(
            f"{path} holds no model: neither component configs (unet/, vae/, ...) with a "
            f"checkpoint beside them, nor a training run ({RUN_CONFIG})."
        )
    if path.is_dir() and not (path / "unet").is_dir():
        return _find_in_run(path, checkpoint)
    return _find_in_folder(path_or_hub_id, checkpoint)


def _holds_model(folder: Path) -> bool:
    return (folder / "unet").is_dir() or (folder / RUN_CONFIG).is_file()


def _find_in_folder(path_or_hub_id: str | Path, checkpoint) -> ModelSource:
    folder = hub.resolve_folder(path_or_hub_id)
    card = read_model_card(folder)
    tiny = weights.component_config(folder, "vae").get("_class_name") == "AutoencoderTiny"
    model_class = _class_of(card.get("model", "LiteSDMatte" if tiny else "SDMatte"), folder)
    defaults = InferenceDefaults.of(card.get("inference", {}), str(folder))
    file = hub.resolve_checkpoint(path_or_hub_id, checkpoint)
    arguments = {}
    if file.stem.startswith(BOXES_ONLY_STEM):
        arguments = {"aux_input": "bbox_mask", "aux_input_list": ["bbox_mask"]}
    return ModelSource(model_class, folder, file.absolute(), arguments, defaults)


def _find_in_run(folder: Path, checkpoint) -> ModelSource:
    """Reads what a training left: its config says which model, and what it was tested with."""
    path = folder / RUN_CONFIG
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        model = dict(config["model"])
        test = config["dataloader"]["test"]["dataset"]
        settings = test.get("settings") or {}
        target, pretrained = model.pop("_target_"), model.pop("pretrained_model_name_or_path")
        defaults = {
            "resolution": test["size"],
            "keep_aspect": settings.get("keep_aspect"),
            "point_radius": settings.get("point_radius"),
        }
    except (OSError, YAMLError, OmegaConfBaseException, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path} is not the config of a training run: {e!r}.") from e
    model.pop("load_weight", None)
    file = folder / hub.FINAL_CHECKPOINT if checkpoint is None else Path(checkpoint)
    if not file.is_file():
        file = folder / file
    if not file.is_file():
        raise MissingCheckpointError(f"Checkpoint file {file} not found.")
    return ModelSource(
        _class_of(str(target).rpartition(".")[2], path),
        pretrained,
        file.absolute(),
        model,
        InferenceDefaults.of(defaults, str(path)),
    )


def _class_of(name: str, source: Path) -> type[SDMatte]:
    if name not in _CLASSES:
        raise CheckpointError(f"{source} is of a {name}; known are {', '.join(_CLASSES)}.")
    return _CLASSES[name]


def offload_model(model: SDMatte, device: torch.device) -> None:
    """Keeps a model on the CPU; autoencoder and U-Net take turns on the device.

    Saves the memory of the larger of the two, at the cost of moving them at each prompt. The text
    encoder stays on the CPU: it runs once.
    """
    _, vae_hook = cpu_offload_with_hook(model.vae, device)
    _, unet_hook = cpu_offload_with_hook(model.unet, device, prev_module_hook=vae_hook)
    vae_hook.hook.prev_module_hook = unet_hook
    # Called by itself, before the U-Net.
    cpu_offload_with_hook(model.unet.aux_conv_in, device)
