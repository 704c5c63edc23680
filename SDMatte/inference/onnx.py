"""Run models exported to ONNX (`SDMatte.inference.export`) by onnxruntime, without torch."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from SDMatte.errors import CheckpointError, ConfigError, DependencyError
from SDMatte.images.resize import to_planes
from SDMatte.inference.defaults import InferenceDefaults
from SDMatte.prompts.maps import Prompt
from SDMatte.prompts.types import NUM_POINTS, PromptType
from SDMatte.runtime.schema import Settings

MODEL_CARD = "sdmatte.json"
ENCODER, PRIOR, UNET, DECODER = "encoder.onnx", "image_prior.onnx", "unet.onnx", "decoder.onnx"

_PROVIDERS = {
    "auto": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "openvino": ("OpenVINOExecutionProvider",),
}
# By default, OpenVINO may use bfloat16 on processors that support it.
_OPTIONS = {"OpenVINOExecutionProvider": {"device_type": "CPU", "precision": "ACCURACY"}}
_ALLOCATION = ("bad allocation", "bad_alloc", "Failed to allocate memory", "out of memory")


class ExportSettings(Settings):
    """Description of an exported model's graphs, stored in its card under ``onnx``.

    Attributes:
        dtype: Type of the weights: float32 or float16.
        size_divisor: Divisor of heights and widths.
        prompts: Names of the prompts that the model was trained with.
        masked: Names of the prompts that mask self-attention.
        has_prior: Whether the model has an image prior.
    """

    dtype: str
    size_divisor: int = Field(gt=0)
    prompts: list[str]
    masked: list[str]
    has_prior: bool


class OnnxNetwork:
    """A model in a folder of ONNX graphs; see `SDMatte.inference.network.TorchNetwork`.

    Args:
        folder: Folder of the exported model.
        device: ``"auto"`` (CUDA if onnxruntime supports it, else the CPU), ``"cpu"``, ``"cuda"``,
            or ``"openvino"`` (the CPU, with the package onnxruntime-openvino).

    Raises:
        CheckpointError: The folder is damaged.
        ConfigError: The device is not available.
        DependencyError: onnxruntime is not installed.
    """

    if_out_of_memory = "lower resolution or batch_size"
    if_overflow = "export the model with --dtype float32"

    def __init__(self, folder: Path, device: Any = "auto"):
        card = read_card(folder)
        try:
            settings = ExportSettings.of(card.get("onnx"), "onnx")
            self.defaults = InferenceDefaults.of(card.get("inference"), "inference")
        except ConfigError as error:
            raise CheckpointError(f"{folder / MODEL_CARD}: {error}") from error
        self.dtype = settings.dtype
        self.size_divisor = settings.size_divisor
        self.trained_prompts = settings.prompts
        self._masked = settings.masked
        self._providers = _choose_providers(str(device))
        self.device = "cuda" if self._providers[0].startswith("CUDA") else "cpu"
        self._encoder = self._open(folder / ENCODER)
        self._prior = self._open(folder / PRIOR) if settings.has_prior else None
        self._unet = self._open(folder / UNET)
        self._decoder = self._open(folder / DECODER)

    def _open(self, path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings concern graph optimization
        threads = os.environ.get("OMP_NUM_THREADS", "")  # as in torch
        options.intra_op_num_threads = int(threads) if threads.isdigit() else 0
        if not path.is_file():
            raise CheckpointError(f"{path} not found: export the model again.")
        try:
            chosen = [(name, _OPTIONS.get(name, {})) for name in self._providers]
            return onnxruntime.InferenceSession(path, options, providers=chosen)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"{path} cannot be loaded: {reason}") from error

    def encode(self, image: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Encode float32 ``[h, w, 3]`` in [0, 1]; see `TorchNetwork.encode`."""
        planes = to_planes(image)[None]
        (latent,) = self._encoder.run(None, {"image": planes})
        if self._prior is None:
            return latent, ()
        blocks = in_blocks(planes, *(n // self.size_divisor for n in planes.shape[2:]))
        return latent, tuple(self._prior.run(None, {"image": blocks}))

    def predict(
        self,
        encodings: Sequence[tuple[np.ndarray, tuple[np.ndarray, ...]]],
        prompts: Sequence[Prompt],
        kind: PromptType,
        transparent: Sequence[bool],
    ) -> np.ndarray:
        """Predict the mattes of a batch; see `TorchNetwork.predict`."""
        latents, residuals = zip(*encodings, strict=True)
        maps = np.stack([to_planes(prompt.mask) for prompt in prompts])  # [B, 1, h, w]
        coords = np.zeros((len(prompts), 2 * NUM_POINTS), np.float32)
        for row, prompt in zip(coords, prompts, strict=True):
            row[: len(prompt.coords)] = prompt.coords
        images = np.broadcast_to(maps, (len(maps), 3, *maps.shape[2:]))
        (prompt_latent,) = self._encoder.run(None, {"image": np.ascontiguousarray(images)})
        inputs = {
            "image_latent": np.concatenate(latents),
            "prompt_latent": prompt_latent,
            "prompt": maps,
        }
        for level, values in enumerate(zip(*residuals, strict=True)):
            inputs[f"residual_{level}"] = np.concatenate(values)
        counts = [n // self.size_divisor for n in maps.shape[2:]]
        (latent,) = self._unet.run(
            None,
            {
                **{name: in_blocks(value, *counts) for name, value in inputs.items()},
                "coords": coords,
                "is_point": np.array(kind.is_point),
                "is_masked": np.array(kind.mask_key in self._masked),
                "is_trans": np.array(transparent, np.int64),
            },
        )
        (alpha,) = self._decoder.run(None, {"latent": latent})
        return alpha[:, 0]  # [B, h, w]

    @staticmethod
    def is_out_of_memory(error: Exception) -> bool:
        """Return whether an exception means that memory ran out."""
        return isinstance(error, MemoryError) or any(text in str(error) for text in _ALLOCATION)


def in_blocks(values: Any, rows: int, columns: int) -> Any:
    """View maps, an array or tensor ``[B, C, h, w]``, as ``[B, C, rows, y, columns, x]``.

    The graphs take maps in this form because the exporter supports a free number of ``rows``, but
    not the condition that heights are multiples of ``y``.
    """
    batch, channels, height, width = values.shape
    return values.reshape(batch, channels, rows, height // rows, columns, width // columns)


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of an exported model; empty for other folders."""
    try:
        card = json.loads((folder / MODEL_CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # if it is another model's card, that model's loader reports it
        return {}
    return card if isinstance(card, dict) and "onnx" in card else {}


def load_exported(
    folder: Path, checkpoint: Any, device: Any, dtype: Any, offload: bool
) -> OnnxNetwork:
    """Load an exported model; see `MattePredictor.from_pretrained` for the arguments.

    Raises:
        ConfigError: An argument does not apply to exported models.
    """
    for name, is_given in (("checkpoint", checkpoint is not None), ("offload", offload)):
        if is_given:
            raise ConfigError(f"{folder} is an exported model: {name} does not apply to it.")
    network = OnnxNetwork(folder, device)
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in ("auto", network.dtype):
        raise ConfigError(
            f"{folder} was exported in {network.dtype}: export the model with --dtype {dtype}, or "
            f"use dtype=auto."
        )
    return network


def _choose_providers(device: str) -> list[str]:
    """Return the execution providers for a device."""
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            "Exported models need onnxruntime, which is not installed: "
            "pip install -r requirements-onnx.txt."
        ) from error
    available = onnxruntime.get_available_providers()
    found = [name for name in _PROVIDERS.get(device, ()) if name in available]
    if not found:
        raise ConfigError(
            f"device={device} is not available: this onnxruntime has {', '.join(available)}. "
            f"device must be one of {', '.join(_PROVIDERS)}."
        )
    return found
