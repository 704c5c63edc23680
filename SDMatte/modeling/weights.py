"""Read and write the weights of pretrained folders and checkpoints, strictly and safely."""

import contextlib
import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from SDMatte.errors import CheckpointError, MissingCheckpointError, first_line
from SDMatte.images.listing import shorten
from SDMatte.modeling import hub
from SDMatte.runtime.files import replace_file, write_text

TEXT_PREFIX = "text_encoder."
TEXT_LEVEL = "text_model."
OWN_KINDS = ("an SDMatte checkpoint", "a LiteSDMatte checkpoint")
FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "numpy.")
PART_SIZE = 2**28
"""Bytes of a checkpoint that `assign_checkpoint` converts at a time."""


# ------------------------------------------------------------------- files


class _Placeholder:
    """Stand-in for an object of a training framework in a checkpoint, with any arguments."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _list_placeholders(path: Path) -> list[tuple[type, str]]:
    """Return placeholders for a checkpoint's other objects, whose code is never imported.

    The original Stable Diffusion files contain Lightning callbacks, for example.
    """
    if not zipfile.is_zipfile(path):
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(_Placeholder, name) for name in names if name.startswith(FRAMEWORKS)]


def _is_mapped(path: Path) -> bool:
    """Return whether `read_tensors` memory-maps a file: safetensors, or torch >= 1.6's zip."""
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a file of tensors, memory-mapped if the format allows it.

    Args:
        path: A `.safetensors` or a `torch.save` file. The latter may hold the state dict itself,
            or nested under `model` or `state_dict`, as the checkpointers of detectron2 and
            Lightning write it. Only tensors and plain containers are unpickled.

    Returns:
        Tensors by name, on the CPU, without the prefix that DDP adds.

    Raises:
        MissingCheckpointError: The file does not exist.
        CheckpointError: The file is not a checkpoint, or is truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingCheckpointError(f"Checkpoint file {path} not found.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt", device="cpu") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}
        else:
            with torch.serialization.safe_globals(_list_placeholders(path)):
                content = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=_is_mapped(path)
                )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} contains more than tensors and is not opened, for safety. It must be a "
            f"PyTorch or safetensors file with a state dict."
        ) from error
    except Exception as error:  # on arbitrary files, torch's reader raises arbitrary errors
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, truncated or of another format."
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict.")
    tensors = {name.removeprefix("module."): value for name, value in content.items()}
    others = [n for n, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(f"{path} holds no state dict: {shorten(others)} are not tensors.")
    return tensors


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, **metadata: str) -> None:
    """Write a `.safetensors` file atomically."""
    with replace_file(path) as temporary:
        save_tensors(tensors, temporary, **metadata)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, **metadata: str) -> None:
    """Save as `.safetensors`, with the permissions of other new files.

    By default, safetensors makes its files readable only by their owner, even in shared folders.
    """
    path.touch()
    mode = path.stat().st_mode
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt", **metadata})
    with contextlib.suppress(OSError):  # not every file system has permissions
        path.chmod(mode)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        MissingCheckpointError: The file does not exist.
        CheckpointError: The file is not a valid JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingCheckpointError(f"{path} not found.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def component_config(folder: Path, component: str) -> dict[str, Any]:
    """Read `config.json` of a component of a pretrained folder; see `read_json`."""
    return read_json(folder / component / "config.json")


def read_model_card(folder: Path) -> dict[str, Any]:
    """Read the model card that `SDMatte.save_pretrained` writes; empty if it does not exist.

    Its keys, all optional: `model`, the class; `arguments`, its settings; `inference`, the settings
    of `SDMatte.inference.defaults.InferenceDefaults`.
    """
    path = folder / hub.MODEL_CARD
    content = read_json(path) if path.is_file() else {}
    if not all(isinstance(content.get(part, {}), dict) for part in ("arguments", "inference")):
        raise CheckpointError(f"{path} is not a model card: its sections must be JSON objects.")
    return content


# ------------------------------------------------------------------- names and shapes


def identify_model(names: Iterable[str]) -> str:
    """Describe the model that a state dict with these names belongs to."""
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


def rename_text_encoder(
    state_dict: dict[str, torch.Tensor], prefix: str = "", with_level: bool = True
) -> None:
    """Add or remove the `text_model.` level of the text encoder's names, in place.

    The published checkpoints have it; transformers 5 dropped it from `CLIPTextModel`. `prefix`
    precedes all names of the model.
    """
    head = prefix + TEXT_PREFIX
    for name in [n for n in state_dict if n.startswith(head)]:
        tail = name[len(head) :].removeprefix(TEXT_LEVEL)
        value = state_dict.pop(name)
        if tail != "embeddings.position_ids":  # a constant that old transformers versions saved
            state_dict[head + (TEXT_LEVEL if with_level else "") + tail] = value


def find_mismatches(
    expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> str:
    """Describe the differences in names and shapes between two state dicts; empty if none."""
    reshaped = [
        f"{name} is {list(tensors[name].shape)}, not {list(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    problems = {
        "missing": expected.keys() - tensors.keys(),
        "unexpected": tensors.keys() - expected.keys(),
        "of another shape": reshaped,
    }
    return "; ".join(f"{len(n)} {word} ({shorten(sorted(n))})" for word, n in problems.items() if n)


def check_fit(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Ensure that a full state dict, by published names, fits a model.

    Raises:
        CheckpointError: Names or shapes differ; the message names `source`.
    """
    problems = find_mismatches(model.state_dict(), tensors)
    if problems:
        raise CheckpointError(
            f"{source} is {identify_model(tensors)} and does not fit this {type(model).__name__}: "
            f"{problems}."
        )


# ------------------------------------------------------------------- loading


def load_strict(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy a full state dict into a model; load nothing if it does not fit (see `check_fit`)."""
    tensors = dict(tensors)
    rename_text_encoder(tensors)
    check_fit(model, tensors, source)
    model.load_state_dict(tensors)


def load_checkpoint(model: nn.Module, name: str | Path) -> None:
    """Load a checkpoint, found by `SDMatte.modeling.hub.resolve_checkpoint`, into a model.

    The model's `new_layers` may be missing in the checkpoint.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or does not fit.
    """
    path = hub.resolve_checkpoint(name)
    prefixes = getattr(model, "new_layers", ())
    new = {n: value for n, value in model.state_dict().items() if n.startswith(prefixes)}
    load_strict(model, {**new, **read_tensors(path)}, str(path))


def assign_checkpoint(model: nn.Module, path: str | Path, part_size: int = PART_SIZE) -> None:
    """Assign the tensors of a checkpoint file to a model on the meta device.

    The tensors get the dtypes of the model. Those that already match stay memory-mapped. The others
    are converted in parts of `part_size` bytes, and the file is remapped after each part to drop
    its pages from memory. Peak memory is thus the model plus one part, whatever the file's size.
    The text encoder gets a single block of memory, because it may be released separately.

    Raises:
        CheckpointError: The file cannot be read or does not fit; see `read_tensors`, `check_fit`.
    """
    path = Path(path)

    def read() -> dict[str, torch.Tensor]:
        tensors = read_tensors(path)
        rename_text_encoder(tensors)
        return tensors

    def drop_pages(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not _is_mapped(path):
            return tensors
        tensors.clear()  # pages are only dropped once nothing refers to the old mapping
        return read()

    types = {name: value.dtype for name, value in model.state_dict().items()}
    tensors = read()
    check_fit(model, tensors, str(path))
    text = {name: value for name, value in tensors.items() if name.startswith(TEXT_PREFIX)}
    converted = _copy_as_block(text, types)
    del text
    tensors = drop_pages(tensors)
    read_bytes = 0
    for name in [n for n, v in tensors.items() if v.dtype != types[n] and n not in converted]:
        read_bytes += tensors[name].nbytes
        converted[name] = tensors.pop(name).to(types[name])
        if read_bytes >= part_size:
            tensors, read_bytes = drop_pages(tensors), 0
    model.load_state_dict({**tensors, **converted}, assign=True)


def _copy_as_block(
    tensors: Mapping[str, torch.Tensor], types: Mapping[str, torch.dtype]
) -> dict[str, torch.Tensor]:
    """Copy tensors into one storage per dtype, whose memory returns to the system when freed.

    The heap would keep the memory of separate small tensors.
    """
    copies: dict[str, torch.Tensor] = {}
    for dtype in {types[name] for name in tensors}:
        names = [name for name in tensors if types[name] == dtype]
        sizes = [tensors[name].numel() for name in names]
        block = torch.empty(sum(sizes), dtype=dtype)
        for name, piece in zip(names, block.split(sizes), strict=True):
            copies[name] = piece.view(tensors[name].shape).copy_(tensors[name])
    return copies


def load_component(
    cls: type[nn.Module], folder: Path, component: str, dtype: torch.dtype
) -> nn.Module:
    """Load a component (`unet`, `vae` or `text_encoder`) of a pretrained folder, strictly.

    `cls` is its diffusers or transformers class. The weights are converted to `dtype`.

    Raises:
        CheckpointError: The weights are missing, damaged or do not fit the config.
    """
    path = folder / component
    names = [f"{component}/{file.name}" for file in path.iterdir()]
    is_half = any(".fp16" in name for name in hub.choose_weights(names, component))
    dtype_argument = "dtype" if cls.__module__.startswith("transformers") else "torch_dtype"
    try:
        model, info = cls.from_pretrained(
            path,
            variant="fp16" if is_half else None,
            output_loading_info=True,
            **{dtype_argument: dtype},
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"Cannot load the weights in {path}: {first_line(error)}.") from error
    # For mismatched keys, transformers returns tuples of a name and the two shapes.
    problems = [
        f"{key.replace('_', ' ')} {shorten(n if isinstance(n, str) else n[0] for n in info[key])}"
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info.get(key)
    ]
    if problems:
        raise CheckpointError(
            f"The weights in {path} do not fit its config.json: {'; '.join(problems)}."
        )
    return model
