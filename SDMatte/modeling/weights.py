"""Reading weights: pretrained folders, published checkpoints, our own; strictly and safely."""

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from SDMatte.errors import CheckpointError, MissingCheckpointError
from SDMatte.modeling import hub

TEXT_PREFIX = "text_encoder."
TEXT_LEVEL = "text_model."
NAMES_SHOWN = 8
OWN_KINDS = ("an SDMatte checkpoint", "a LiteSDMatte checkpoint")
CONVERTED_AT_ONCE = 2**28
FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "numpy.")


def shorten(names: Iterable[str]) -> str:
    """Writes a list of names on one line, the first few of them and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


class _StandIn:
    """Takes the place of a training framework's object in a file, whatever its arguments."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_ins(path: Path) -> list[tuple[type, str]]:
    """List what `read_tensors` puts in place of objects beside the tensors.

    Stable Diffusion's own files hold Lightning's callbacks, say. The objects' code is never
    imported or run.
    """
    list_globals = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if list_globals is None or not zipfile.is_zipfile(path):
        return []
    return [(_StandIn, name) for name in list_globals(path) if name.startswith(FRAMEWORKS)]


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a file of tensors, memory-mapped where the format allows it.

    Args:
        path: A ``.safetensors`` file, or a ``torch.save`` file. The latter may hold the state
            dict itself or one level down under ``model`` or ``state_dict``, as detectron2's and
            Lightning's checkpointers write it. Nothing but tensors and plain containers is
            unpickled.

    Returns:
        Tensors by name, on the CPU, without the prefix that DDP adds.

    Raises:
        MissingCheckpointError: The file does not exist.
        CheckpointError: It is no checkpoint, or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingCheckpointError(f"Checkpoint file {path} not found.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt", device="cpu") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}
        else:
            with torch.serialization.safe_globals(_stand_ins(path)):
                content = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=is_mapped(path)
                )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of tensors alone, so it is not opened: a PyTorch or "
            f"safetensors file with a state dict is needed."
        ) from error
    except Exception as error:  # on a file of any kind torch's reader can fail in any way
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint; it is damaged, cut short or of another kind."
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict.")
    tensors = {name.removeprefix("module."): value for name, value in content.items()}
    strange = [n for n, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise CheckpointError(f"{path} holds no state dict: {shorten(strange)} are not tensors.")
    return tensors


def describe_model(names: Iterable[str]) -> str:
    """Says in words which model a state dict belongs to, from its names."""
    names = list(names)
    if any(n.startswith("vae.encoder.layers.") for n in names):
        return OWN_KINDS[1]
    if any(n.startswith("unet.aux_conv_in.") for n in names):
        return OWN_KINDS[0]
    if any(n.startswith("model.diffusion_model.") for n in names):
        return "a Stable Diffusion checkpoint in its original one-file format"
    if any(n.startswith("down_blocks.") for n in names):
        return "the weights of a diffusers U-Net alone"
    return "not an SDMatte checkpoint"


def rename_text_encoder(state_dict: dict[str, torch.Tensor], prefix: str, with_level: bool) -> None:
    """Writes the text encoder's names with or without their ``text_model.`` level, in place.

    transformers 5 dropped that level from `CLIPTextModel`; the published checkpoints have it.

    Args:
        state_dict: Tensors by name.
        prefix: What stands before ``text_encoder.`` in the names.
        with_level: The spelling that is wanted.
    """
    head = prefix + TEXT_PREFIX
    for name in [n for n in state_dict if n.startswith(head)]:
        tail = name[len(head) :].removeprefix(TEXT_LEVEL)
        if tail == "embeddings.position_ids":  # a constant that old transformers versions saved
            del state_dict[name]
            continue
        value = state_dict.pop(name)
        state_dict[head + (TEXT_LEVEL if with_level else "") + tail] = value


def check_fit(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Names whatever of a full state dict does not fit a model.

    Args:
        model: An `SDMatte` or `LiteSDMatte`.
        tensors: Tensors by published name.
        source: What the message calls them, usually the file.

    Raises:
        CheckpointError: Names are missing or unexpected, or shapes differ.
    """
    expected = {name: value.shape for name, value in model.state_dict().items()}
    missing = expected.keys() - tensors.keys()
    unexpected = tensors.keys() - expected.keys()
    reshaped = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({shorten(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({shorten(unexpected)})")
    if reshaped:
        problems.append(f"{len(reshaped)} of another shape ({shorten(reshaped)})")
    if problems:
        kind = describe_model(tensors)
        raise CheckpointError(
            f"{source} is {kind} and does not fit this {type(model).__name__}: "
            f"{'; '.join(problems)}."
        )


def load_strict(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Copies a full state dict into a model, or raises as `check_fit` does and loads nothing."""
    tensors = dict(tensors)
    rename_text_encoder(tensors, "", with_level=True)
    check_fit(model, tensors, source)
    model.load_state_dict(tensors)


def load_checkpoint(model: nn.Module, name: str | Path) -> None:
    """Copy a checkpoint, published or our own, into a model.

    Args:
        model: An `SDMatte` or `LiteSDMatte`.
        name: A file, a folder or a hub id; see `SDMatte.modeling.hub.resolve_checkpoint`.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or does not fit.
    """
    path = hub.resolve_checkpoint(name)
    load_strict(model, read_tensors(path), str(path))


def assign_checkpoint(
    model: nn.Module, path: str | Path, part_size: int = CONVERTED_AT_ONCE
) -> None:
    """Puts a checkpoint file's tensors in place in a model that was built without memory.

    They take the model's own types. What has these types stays mapped from the file. The rest is
    converted part by part, and between the parts the file is let go of, so that its pages do not
    add up: loading takes the memory of the model and a part, whatever the file's size. The text
    encoder, which may be released by itself, gets a block of its own.

    Args:
        model: An `SDMatte` or `LiteSDMatte`, on the meta device.
        path: The file.
        part_size: Bytes of the file in a part.

    Raises:
        CheckpointError: The file cannot be read or does not fit; see `read_tensors`, `check_fit`.
    """

    def read() -> dict[str, torch.Tensor]:
        tensors = read_tensors(path)
        rename_text_encoder(tensors, "", with_level=True)
        return tensors

    def let_go(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not is_mapped(path):
            return tensors
        tensors.clear()  # before it is mapped anew: that is what lets go of the pages
        return read()

    types = {name: value.dtype for name, value in model.state_dict().items()}
    tensors = read()
    check_fit(model, tensors, str(path))
    text = [name for name in tensors if name.startswith(TEXT_PREFIX)]
    converted = _copy_as_block({name: tensors[name] for name in text}, types)
    tensors = let_go(tensors)
    others = [n for n, v in tensors.items() if v.dtype != types[n] and n not in converted]
    parts: list[list[str]] = []
    room = 0
    for name in others:
        if room <= 0:
            parts.append([])
            room = part_size
        parts[-1].append(name)
        room -= tensors[name].nbytes
    for part in parts:
        converted |= {name: tensors.pop(name).to(types[name]) for name in part}
        tensors = let_go(tensors)
    model.load_state_dict({**tensors, **converted}, assign=True)


def _copy_as_block(
    tensors: Mapping[str, torch.Tensor], types: Mapping[str, torch.dtype]
) -> dict[str, torch.Tensor]:
    """Copies tensors into one storage a type: as a whole it goes back to the system when freed.

    The pieces of a heap would not, and the memory of an encoder that is no longer there would stay.
    """
    copies: dict[str, torch.Tensor] = {}
    for dtype in {types[name] for name in tensors}:
        names = [name for name in tensors if types[name] == dtype]
        sizes = [tensors[name].numel() for name in names]
        block = torch.empty(sum(sizes), dtype=dtype)
        for name, piece in zip(names, block.split(sizes), strict=True):
            copies[name] = piece.view(tensors[name].shape).copy_(tensors[name])
    return copies


def is_mapped(path: str | Path) -> bool:
    """Whether `read_tensors` maps a file: the zip format of torch >= 1.6, and safetensors."""
    return Path(path).suffix == ".safetensors" or zipfile.is_zipfile(path)


def component_config(folder: Path, component: str) -> dict:
    """Reads ``config.json`` of a component of a pretrained folder.

    Raises:
        CheckpointError: The folder lacks it, or it is not JSON.
    """
    path = folder / component / "config.json"
    if not path.is_file():
        raise MissingCheckpointError(
            f"{folder} is not a Stable Diffusion folder in diffusers layout: "
            f"it has no {component}/config.json."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error


def load_component(cls, folder: Path, component: str, dtype: torch.dtype) -> nn.Module:
    """Loads one pretrained component with all its weights, or says which do not fit.

    Args:
        cls: The diffusers or transformers class.
        folder: The pretrained folder.
        component: Its sub-folder: ``unet``, ``vae`` or ``text_encoder``.
        dtype: Wanted type of the weights, whatever the file's.

    Raises:
        CheckpointError: The weights are missing, damaged or do not fit the config.
    """
    component_config(folder, component)
    plain = any((folder / component).glob("*model.safetensors*")) or any(
        (folder / component).glob("*model.bin*")
    )
    sharded = any((folder / component).glob("*model-*-of-*"))
    half = any((folder / component).glob("*.fp16*"))
    dtype_argument = "dtype" if cls.__module__.startswith("transformers") else "torch_dtype"
    try:
        model, info = cls.from_pretrained(
            folder / component,
            variant="fp16" if half and not (plain or sharded) else None,
            output_loading_info=True,
            **{dtype_argument: dtype},
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"The weights in {folder / component} cannot be loaded: {reason}"
        ) from error
    problems = [
        f"{word} {shorten(str(n[0]) if isinstance(n, tuple) else n for n in info[key])}"
        for key, word in (
            ("missing_keys", "missing are"),
            ("unexpected_keys", "unexpected are"),
            ("mismatched_keys", "of another shape are"),
        )
        if info.get(key)
    ]
    if problems:
        raise CheckpointError(
            f"The weights in {folder / component} do not fit its config.json: "
            f"{'; '.join(problems)}."
        )
    return model
