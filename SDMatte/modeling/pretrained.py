"""Prepare Stable Diffusion's weights for SDMatte; `process_weight.py` is the command."""

import logging
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import init_empty_weights
from safetensors import safe_open

from SDMatte.errors import CheckpointError, ConfigError, OutputError, SDMatteError, first_line
from SDMatte.modeling import hub, weights
from SDMatte.modeling.single_file import check_cross_attention, find_config, read_single_file
from SDMatte.modeling.surgery import COORDINATE_LAYERS, CoordinateInit, coordinate_weights
from SDMatte.modeling.unet import COORDINATE_SETTINGS, SDMatteUNet
from SDMatte.runtime.files import check_not_read, check_writable

logger = logging.getLogger(__name__)

REQUIRED = ("unet", "vae", "text_encoder", "tokenizer")
OPTIONAL = ("scheduler", "feature_extractor")
FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
"""Weight file of each component."""


def process_pretrained(
    source: str | Path,
    output: str | Path | None = None,
    vae: str | Path | None = None,
    init: CoordinateInit = "default",
    config: str | Path | None = None,
) -> Path:
    """Add SDMatte's coordinate embeddings to the U-Net of Stable Diffusion v2.

    `unet/config.json` gets the three coordinate settings, and the U-Net's weights get the eight
    tensors of the embeddings, in the same dtype and with sizes from the config. A folder that
    already has them is left unchanged.

    Args:
        source: Stable Diffusion v2 or BK-SDM v2 base, as a folder in diffusers layout or its hub
            id; or Stable Diffusion v2 as the original single file, local or on the hub.
        output: The folder to write; None: change `source` in place.
        vae: A TAESD folder or hub id that replaces the autoencoder, for LiteSDMatte.
        init: Initialization of the new tensors; see `SDMatte.modeling.surgery.coordinate_weights`.
        config: For a single file, the folder or hub id with the component configs and the
            tokenizer; see `SDMatte.modeling.single_file.find_config`.

    Returns:
        The processed folder.

    Raises:
        MissingCheckpointError: The source does not exist, or the hub cannot provide it.
        CheckpointError: The source is invalid, `output` has other content, or the disk is full.
        ConfigError: `init` is unknown, or `config` is given for a folder.
        OutputError: `output` is not writable, or is inside an input folder.
    """
    if init not in get_args(CoordinateInit):
        raise ConfigError(f"init must be 'default' or 'zeros'; got {init!r}.")
    in_place = output is None
    target = Path(source if in_place else output)
    _check_paths(source, target, in_place, vae)
    if _is_processed(target, with_tiny_vae=vae is not None, init=init):
        logger.info("%s is already processed; nothing to do.", target)
        return target
    if not in_place:
        check_writable(target / "model_index.json")
        if target.exists() and any(target.iterdir()):
            raise CheckpointError(
                f"{target} exists and is not {source} processed with --init {init}: choose another "
                f"output folder, or remove it."
            )
    replaced = () if vae is None else ("vae",)
    path = hub.resolve_pretrained(source, replaced)
    vae_folder = None if vae is None else hub.resolve_component(vae)
    if vae_folder is not None and not _is_tiny_vae(vae_folder):
        raise CheckpointError(
            f"{vae_folder} is not a TAESD folder: the class in its config is not AutoencoderTiny."
        )
    if vae_folder is not None:
        read_component_weights(vae_folder)  # raises if they are damaged
    # Components to write from tensors, and components to copy as folders.
    tensors: dict[str, dict[str, torch.Tensor]]
    copied: dict[str, Path]
    if path.is_file():
        config_folder, unet_source = find_config(source, config), path
        configs, tensors = read_single_file(path, config_folder)
        copied = {name: config_folder / name for name in ("tokenizer", "scheduler")}
    elif config is None:
        unet_source = path / "unet"
        configs = {"unet": weights.component_config(path, "unet")}
        check_cross_attention(str(unet_source), configs["unet"].get("cross_attention_dim"))
        tensors = {"unet": read_component_weights(unet_source)}
        copied = {name: path / name for name in (*REQUIRED, *OPTIONAL) if name != "unet"}
        for name in FILES.keys() - {*tensors, *replaced}:
            read_component_weights(path / name)
    else:
        raise ConfigError("--config is only for single files; a folder has its own configs.")
    for name in replaced:
        tensors.pop(name, None)
        copied.pop(name, None)
    copied = {name: folder for name, folder in copied.items() if folder.is_dir() and not in_place}
    new = _make_coordinate_weights(configs["unet"], tensors["unet"], unet_source, init)
    _check_disk(target, tensors, copied)
    configs["unet"] = {**COORDINATE_SETTINGS, **configs["unet"]}
    tensors["unet"] = {**tensors["unet"], **new}

    def write(folder: Path, name: str) -> None:
        if name in copied:
            logger.info("Copying %s/ ...", name)
            shutil.copytree(copied[name], folder, dirs_exist_ok=True)
        elif name in tensors:
            logger.info("Writing %s/ ...", name)
            metadata = {"sdmatte_init": init} if name == "unet" else {}
            weights.write_tensors(tensors[name], folder / FILES[name], **metadata)
            weights.write_json(folder / "config.json", configs[name])
        else:  # the replaced autoencoder
            for file in (vae_folder / "config.json", *_weight_files(vae_folder)):
                shutil.copy2(file, folder / file.name)

    def write_all(folder: Path) -> None:
        for name in (*copied, *tensors, *replaced):
            (folder / name).mkdir()
            write(folder / name, name)
        if (path / "model_index.json").is_file():
            shutil.copy2(path / "model_index.json", folder)

    if in_place:
        for name in ("unet", *replaced):
            replace_folder(target / name, partial(write, name=name))
    else:
        replace_folder(target, write_all)
    logger.info("Added %d settings to unet/config.json.", len(COORDINATE_SETTINGS))
    for name, value in new.items():
        state = "zero" if not value.any() else "random"
        logger.info("Added %-34s %-14s %s", name, list(value.shape), state)
    logger.info("%s is ready: set model.pretrained_model_name_or_path to it.", target)
    return target


# ------------------------------------------------------------------- checks


def _check_paths(source: str | Path, target: Path, in_place: bool, vae: str | Path | None) -> None:
    is_folder = Path(source).is_dir()
    if is_folder:
        _check_components(Path(source))
    elif in_place:
        raise CheckpointError(f"{source} is not a local folder: give an output folder.")
    if not in_place and is_folder and target.resolve() == Path(source).resolve():
        raise CheckpointError(f"{source} is both input and output: use --in-place to modify it.")
    for read in (vae,) if in_place else (source, vae):
        if read is not None and Path(read).exists():
            if target.resolve().is_relative_to(Path(read).resolve()):
                raise OutputError(f"{target} is in {read}, which is read: choose another output.")
    check_not_read([target, target / "unet", target / "vae"], [vae])


def _check_components(folder: Path) -> None:
    """Ensure that a folder is complete, after restoring the backups of an interrupted run."""
    for name in REQUIRED:
        old = _backup_path(folder / name)
        if old.is_dir() and not (folder / name).exists():
            old.rename(folder / name)
        if not (folder / name).is_dir():
            raise CheckpointError(
                f"{folder} is not a Stable Diffusion folder in diffusers layout: it has no {name}/."
            )


def _is_tiny_vae(folder: Path) -> bool:
    config = weights.component_config(folder.parent, folder.name)
    return config.get("_class_name") == "AutoencoderTiny"


def _is_processed(folder: Path, with_tiny_vae: bool, init: str) -> bool:
    file = folder / "unet" / FILES["unet"]
    if not file.is_file() or not (folder / "unet" / "config.json").is_file():
        return False
    config = weights.component_config(folder, "unet")
    if any(name not in config for name in COORDINATE_SETTINGS):
        return False
    if with_tiny_vae and not _is_tiny_vae(folder / "vae"):
        return False
    try:
        names = {part: read_component_weights(folder / part).keys() for part in FILES}["unet"]
    except (CheckpointError, OSError):  # damaged or missing
        return False
    with safe_open(file, framework="pt") as content:
        made_with = (content.metadata() or {}).get("sdmatte_init", init)
    layers = [f"{layer}.linear_{i}.weight" for layer in COORDINATE_LAYERS for i in (1, 2)]
    return made_with == init and names >= set(layers)


def _check_disk(
    target: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], copied: Mapping[str, Path]
) -> None:
    needed = sum(value.nbytes for component in tensors.values() for value in component.values())
    files = (file for folder in copied.values() for file in folder.rglob("*"))
    needed += sum(file.stat().st_size for file in files if file.is_file())
    existing = next(p for p in (target, *target.resolve().parents) if p.exists())
    total, _, free = shutil.disk_usage(existing)
    if total and free < needed:  # special file systems have no size; writing reports the obstacle
        raise CheckpointError(
            f"{target} needs {needed / 2**30:.1f} GiB of disk space; {free / 2**30:.1f} GiB free."
        )


# ------------------------------------------------------------------- reading and writing


def read_component_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read a component's weights: `.safetensors` or `.bin`, one file or sharded, fp32 or fp16.

    Raises:
        CheckpointError: The weights are missing or damaged.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        if path.suffix != ".json":
            tensors |= weights.read_tensors(path)
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """Return the paths of a component's weights, and of their index if they are sharded."""
    folder = folder.absolute()  # its name, which `--vae .` lacks, is that of the component
    names = [f"{folder.name}/{path.name}" for path in folder.iterdir()]
    files = hub.choose_weights(names, folder.name)
    if not files:
        raise CheckpointError(
            f"{folder} has no weights (diffusion_pytorch_model.safetensors or .bin)."
        )
    return [folder.parent / name for name in files]


def _make_coordinate_weights(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    source: Path,
    init: CoordinateInit,
) -> dict[str, torch.Tensor]:
    """Create a U-Net's missing coordinate embeddings, after checking its other weights."""
    try:
        with init_empty_weights():
            expected = SDMatteUNet.from_config(config).state_dict()
    except Exception as error:  # on invalid settings, diffusers raises arbitrary errors
        raise CheckpointError(
            f"The config.json of {source} is not that of a U-Net: {first_line(error)}."
        ) from error
    shapes = {n: v.shape for n, v in expected.items() if n.split(".")[0] in COORDINATE_LAYERS}
    missing = shapes.keys() - tensors.keys()
    problems = weights.find_mismatches(
        {name: value for name, value in expected.items() if name not in missing}, tensors
    )
    if problems:
        raise CheckpointError(f"The weights in {source} do not fit its config.json: {problems}.")
    new = coordinate_weights(shapes, init, tensors["conv_in.weight"].dtype)
    return {name: new[name] for name in new if name in missing}


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its target, and move it into place once it is complete.

    Raises:
        OutputError: The folder cannot be written.
    """
    temporary, old = target.with_name(f".{target.name}.partial"), _backup_path(target)
    shutil.rmtree(temporary, ignore_errors=True)  # left by an interrupted run
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except SDMatteError:  # may also be an OSError
        raise
    except OSError as error:
        raise OutputError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _backup_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
