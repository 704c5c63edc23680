"""Prepares Stable Diffusion's weights for SDMatte: the files' side of `process_weight.py`."""

import json
import logging
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import save_file

from SDMatte.errors import CheckpointError, ConfigError, OutputError
from SDMatte.modeling import hub, single_file, weights
from SDMatte.modeling.surgery import COORDINATE_LAYERS, coordinate_weights
from SDMatte.modeling.unet import COORDINATE_SETTINGS, SDMatteUNet
from SDMatte.runtime.files import check_not_read

logger = logging.getLogger(__name__)

FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor")
REQUIRED = ("unet", "vae", "text_encoder", "tokenizer")
UNET_FILE = "diffusion_pytorch_model.safetensors"
SD2_CROSS_ATTENTION_DIM = 1024

CopyOthers = Callable[[Path, Collection[str]], None]
"""Writes all but the U-Net into a folder, without the components that are named."""


def process_pretrained(
    source: str | Path,
    output: str | Path | None = None,
    vae: str | Path | None = None,
    init: str = "default",
    config: str | Path | None = None,
) -> Path:
    """Add what SDMatte's U-Net needs to Stable Diffusion v2.

    The three coordinate settings go into ``unet/config.json``, the eight tensors of the
    coordinate embeddings into the U-Net's weights, in the weights' own type; the sizes come from
    the folder's config. A folder that has all of it is kept as it is.

    Args:
        source: Stable Diffusion v2 or BK-SDM v2 base, as a folder in diffusers layout or its hub
            id; or Stable Diffusion v2 as the original single file, local or in a hub repository.
        output: Where to write the new folder; None: change ``source`` itself.
        vae: A TAESD folder or hub id that takes the place of the autoencoder, for LiteSDMatte.
        init: How the new tensors start; see `SDMatte.modeling.surgery.coordinate_weights`.
        config: For a single file, the folder or hub id with the component configs and the
            tokenizer; None: the file's own folder if it has them, or else those of
            `SDMatte.modeling.single_file.DEFAULT_CONFIG`.

    Returns:
        The folder that is ready.

    Raises:
        MissingCheckpointError: The source does not exist, or the hub cannot provide it.
        CheckpointError: The folder or its weights are not what they should be, the output is
            something else, or there is too little disk; nothing was written.
        OutputError: The output is in a folder that is read.
    """
    if init not in ("default", "zeros"):
        raise ConfigError(f"init is 'default' or 'zeros'; got {init!r}.")
    is_folder = Path(source).is_dir()
    if is_folder:
        _recover(Path(source))
    if output is None and not is_folder:
        raise CheckpointError(f"{source} is not a local folder: it needs an output folder.")
    target = Path(source) if output is None else Path(output)
    if output is not None and is_folder and target.resolve() == Path(source).resolve():
        raise CheckpointError(f"{source} is input and output; say --in-place if that is meant.")
    local = [Path(p) for p in (source if output is not None else None, vae) if p is not None]
    for read in filter(Path.exists, local):
        if target.resolve().is_relative_to(read.resolve()):
            raise OutputError(f"{target} is in {read}, which is read: choose another output.")
    check_not_read([target, *(target / name for name in ("unet", "vae"))], [vae])
    if _is_processed(target, with_tiny_vae=vae is not None, init=init):
        logger.info("%s is processed already; nothing to do.", target)
        return target
    if output is not None and target.exists() and any(target.iterdir()):
        raise CheckpointError(
            f"{target} exists and is not what this command would make of {source} with "
            f"--init {init}: choose another output folder, or remove it."
        )
    path = hub.resolve_pretrained(source, replaced=("vae",) if vae is not None else ())
    vae = _check_vae(hub.resolve_component(vae)) if vae is not None else None
    if path.is_file():
        parts = single_file.read(path, single_file.find_config(source, config))
        unet, tensors = parts.configs["unet"], parts.weights.pop("unet")
        copy_others, size = parts.write, parts.size
        where = str(path)
    else:
        if config is not None:
            raise ConfigError("A folder has configs of its own: --config is for a single file.")
        unet, tensors = _check_unet_config(path), read_unet_weights(path / "unet")
        others = [name for name in FOLDERS if name != "unet"]
        size = sum(f.stat().st_size for n in others for f in (path / n).rglob("*") if f.is_file())
        where = str(path / "unet")

        def copy_others(folder: Path, replaced: Collection[str]) -> None:
            _copy_folders(path, folder, replaced)

    new = _new_tensors(where, unet, tensors, init)
    unet = {**COORDINATE_SETTINGS, **unet}
    _check_disk(target, tensors, size if output is not None else 0)

    if output is None:
        _swap_into_place(target, unet, {**tensors, **new}, vae, init)
    else:
        _write_new(target, copy_others, unet, {**tensors, **new}, vae, init)
    logger.info("Added %d settings to unet/config.json.", len(COORDINATE_SETTINGS))
    for name, value in new.items():
        state = "zero" if not value.any() else "random"
        logger.info("Added %-34s %-14s %s", name, list(value.shape), state)
    logger.info("%s is ready: use it as the model's pretrained folder.", target)
    return target


def _recover(source: Path) -> None:
    """Put back what an in-place run that was killed has moved away, and check the folder."""
    for name in REQUIRED:
        old = _put_aside(source / name)
        if old.is_dir() and not (source / name).exists():
            old.rename(source / name)
        if not (source / name).is_dir():
            raise CheckpointError(
                f"{source} is not a Stable Diffusion folder in diffusers layout: it has no {name}/."
            )


def read_unet_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Reads U-Net weights: ``.safetensors`` or ``.bin``, one file or sharded, fp32 or fp16.

    Raises:
        CheckpointError: There are none, or they are damaged.
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


def _check_unet_config(source: Path) -> dict:
    config = weights.component_config(source, "unet")
    dim = config.get("cross_attention_dim")
    if dim != SD2_CROSS_ATTENTION_DIM:
        kind = "a Stable Diffusion 1.x" if dim == 768 else "another"
        raise CheckpointError(
            f"{source / 'unet'} is {kind} U-Net (cross_attention_dim {dim}); SDMatte needs "
            f"Stable Diffusion v2 or BK-SDM v2 ({SD2_CROSS_ATTENTION_DIM})."
        )
    return config


def _check_vae(vae: Path) -> Path:
    config = weights.component_config(vae.parent, vae.name)
    if config.get("_class_name") != "AutoencoderTiny":
        raise CheckpointError(f"{vae} is not a TAESD folder: its config names no AutoencoderTiny.")
    return vae


def _new_tensors(where: str, config: dict, tensors: dict, init: str) -> dict[str, torch.Tensor]:
    """Makes the tensors that are lacking, once the others are known to fit the config."""
    with init_empty_weights():
        unet = SDMatteUNet.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    ours = {n: shape for n, shape in shapes.items() if n.split(".")[0] in COORDINATE_LAYERS}
    missing = shapes.keys() - ours.keys() - tensors.keys()
    unexpected = tensors.keys() - shapes.keys()
    reshaped = [n for n in shapes.keys() & tensors.keys() if tuple(tensors[n].shape) != shapes[n]]
    for names, word in ((missing, "lack"), (unexpected, "should not have")):
        if names:
            raise CheckpointError(
                f"The weights in {where} do not fit its config.json: they {word} "
                f"{weights.shorten(names)}."
            )
    if reshaped:
        raise CheckpointError(
            f"The weights in {where} do not fit its config.json: other shapes have "
            f"{weights.shorten(reshaped)}."
        )
    dtype = tensors["conv_in.weight"].dtype
    new = coordinate_weights(ours, init, dtype)
    return {name: value for name, value in new.items() if name not in tensors}


def _is_processed(folder: Path, with_tiny_vae: bool, init: str) -> bool:
    file = folder / "unet" / UNET_FILE
    if not file.is_file() or not (folder / "unet" / "config.json").is_file():
        return False
    config = weights.component_config(folder, "unet")
    if any(name not in config for name in COORDINATE_SETTINGS):
        return False
    if with_tiny_vae:
        if weights.component_config(folder, "vae").get("_class_name") != "AutoencoderTiny":
            return False
    with safe_open(file, framework="pt") as content:
        names = set(content.keys())
        made_with = (content.metadata() or {}).get("sdmatte_init", init)
    layers = [f"{layer}.linear_{i}.weight" for layer in COORDINATE_LAYERS for i in (1, 2)]
    return made_with == init and names.issuperset(layers)


def _check_disk(target: Path, tensors: dict, others: int) -> None:
    needed = sum(value.nbytes for value in tensors.values()) + others
    existing = next(p for p in (target, *target.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"{target} needs {needed / 2**30:.1f} GiB of disk, and {free / 2**30:.1f} GiB are free."
        )


def _write_unet(folder: Path, config: dict, tensors: dict, init: str) -> None:
    logger.info("Writing the U-Net's weights ...")
    metadata = {"format": "pt", "sdmatte_init": init}
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, folder / UNET_FILE, metadata=metadata)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _write_vae(vae: Path, folder: Path) -> None:
    for path in [vae / "config.json", *_weight_files(vae)]:
        shutil.copy2(path, folder / path.name)


def _copy_folders(source: Path, folder: Path, replaced: Collection[str]) -> None:
    for name in FOLDERS:
        if name not in ("unet", *replaced) and (source / name).is_dir():
            logger.info("Copying %s/ ...", name)
            shutil.copytree(source / name, folder / name)
    if (source / "model_index.json").is_file():
        shutil.copy2(source / "model_index.json", folder / "model_index.json")


def _write_new(target, copy_others: CopyOthers, config, tensors, vae, init) -> None:
    """Writes the whole folder beside its place and moves it there when it is complete."""

    def write(folder: Path) -> None:
        copy_others(folder, () if vae is None else ("vae",))
        (folder / "unet").mkdir()
        _write_unet(folder / "unet", config, tensors, init)
        if vae is not None:
            (folder / "vae").mkdir()
            _write_vae(vae, folder / "vae")

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _build_beside(target, write)
    if target.exists():
        target.rmdir()  # an empty folder; others were refused
    partial.rename(target)


def _swap_into_place(target, config, tensors, vae, init) -> None:
    """Replaces the sub-folders that change; each is complete before it takes its place."""
    made = [(target / "unet", lambda folder: _write_unet(folder, config, tensors, init))]
    if vae is not None:
        made.append((target / "vae", lambda folder: _write_vae(vae, folder)))
    for place, write in made:
        partial = _build_beside(place, write)
        old = _put_aside(place)
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
        partial.rename(place)
        shutil.rmtree(old)


def _put_aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _build_beside(place: Path, write: Callable[[Path], None]) -> Path:
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    partial.mkdir()
    try:
        write(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return partial
