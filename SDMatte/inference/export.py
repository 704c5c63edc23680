"""Export models to ONNX, for `SDMatte.inference.onnx`.

The folder has a graph for each part: image encoder (which also encodes prompts), image prior, U-Net
and decoder, for any batch size and resolution. One U-Net serves all prompts: inputs select the kind
of coordinates and whether self-attention is masked. Masked keys get a bias and are not skipped. The
embedding of the empty caption is a constant.
"""

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.export import Dim

from SDMatte.errors import CheckpointError, ConfigError, DependencyError, OutputError
from SDMatte.inference.loading import find_model
from SDMatte.inference.network import TorchNetwork
from SDMatte.inference.onnx import (
    DECODER,
    ENCODER,
    MODEL_CARD,
    PRIOR,
    UNET,
    ExportSettings,
    OnnxNetwork,
    in_blocks,
)
from SDMatte.modeling import SDMatte, weights
from SDMatte.modeling.attention import (
    AttentionContext,
    KeySelection,
    MattingAttnProcessor,
    build_masks,
    select_keys,
)
from SDMatte.modeling.cpu import undo_optimization
from SDMatte.modeling.pretrained import replace_folder
from SDMatte.modeling.sdmatte import MIN_WIDTH_FOR_LOW_PRECISION
from SDMatte.prompts.pixels import read_prompts
from SDMatte.prompts.types import NUM_POINTS, PROMPT_TYPES
from SDMatte.runtime.files import check_not_read, check_writable

logger = logging.getLogger(__name__)

TOLERANCES = {"float32": 1e-4, "float16": 3e-2}
"""Largest allowed difference of alpha from PyTorch in float32, by type of the weights."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_BATCH = Dim("batch", min=1, max=63)  # from 64 on, diffusers adds a copy, with equal results
_HEIGHT, _WIDTH = Dim("height", min=1, max=2**12), Dim("width", min=1, max=2**12)
_BLOCKS = {0: _BATCH, 2: _HEIGHT, 4: _WIDTH}
_SAMPLE_SIDE = 128  # pixels; smaller images would give an encoder's deepest maps a side of 1


def export_model(
    path_or_hub_id: str | Path,
    output: Path,
    dtype: str = "float32",
    checkpoint: str | Path | None = None,
) -> dict[str, float]:
    """Export a model to a folder of ONNX graphs, after checking their results.

    Args:
        path_or_hub_id: See `find_model`.
        output: Folder to create.
        dtype: Type of the weights, float32 or float16; narrow autoencoders stay in float32.
        checkpoint: See `find_model`.

    Returns:
        The largest difference of alpha from PyTorch in float32, for each prompt.

    Raises:
        CheckpointError: The model was not found, or its graphs differ from it by more than
            `TOLERANCES`. No folder is written.
        ConfigError: The type is not supported.
        DependencyError: A package is not installed.
        OutputError: The folder exists or cannot be written.
    """
    if dtype not in TOLERANCES:
        raise ConfigError(f"dtype must be {' or '.join(TOLERANCES)}; got {dtype!r}.")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"Exporting needs {', '.join(missing)}: pip install {' '.join(missing)}."
        )
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):  # they log each step
        logging.getLogger(name).setLevel(logging.WARNING)
    check_not_read([output], [path_or_hub_id])
    check_writable(output / MODEL_CARD)
    if output.is_dir() and any(output.iterdir()):
        raise OutputError(f"{output} is not empty: choose another output.")
    source = find_model(path_or_hub_id, checkpoint)
    model = source.load(torch.device("cpu"), torch.float32)
    model.release_text_encoder()
    expected = _predict_samples(TorchNetwork(model))
    _prepare(model, getattr(torch, dtype))
    kinds = PROMPT_TYPES.items()
    settings = ExportSettings(
        dtype=dtype,
        size_divisor=model.size_divisor,
        prompts=list(dict.fromkeys(model.settings.aux_input_list)),
        masked=[name for name, kind in kinds if model.masks_attention(kind)],
        has_prior=model.image_prior is not None,
    )
    differences: dict[str, float] = {}

    def write(folder: Path) -> None:
        nonlocal model
        _write_graphs(model, folder)
        card = {
            "model": type(model).__name__,
            "onnx": settings.model_dump(),
            "inference": source.defaults.model_dump(),
        }
        weights.write_json(folder / MODEL_CARD, card)
        del model  # frees its memory before the graphs are loaded
        network = OnnxNetwork(folder, "cpu")
        try:
            found = _predict_samples(network)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"The exported model does not run: {reason}") from error
        for name, alpha in found.items():
            differences[name] = float(np.abs(alpha - expected[name]).max())
            if not differences[name] <= TOLERANCES[dtype]:
                raise CheckpointError(
                    f"With a {name} prompt, the exported model differs from the original by "
                    f"{differences[name]:.1e}, more than {TOLERANCES[dtype]:g}; it was not written."
                )

    replace_folder(output, write)
    return differences


def _predict_samples(network: Any) -> dict[str, np.ndarray]:
    """Predict a batch for each prompt, at a different size than the export used."""
    rng = np.random.default_rng(0)
    divisor = network.size_divisor
    height, width = 3 * divisor * max(1, 32 // divisor), 2 * divisor * max(1, 32 // divisor)
    coarse = rng.random((3, 4, 4, 3), np.float32)  # pixel noise would amplify rounding errors
    images = [cv2.resize(image, (width, height)) for image in coarse]
    encodings = [network.encode(image) for image in images]
    box = (width // 4, height // 4, width - 5, height - 9)
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    trimap = np.where(mask > 0, 128, 0).astype(np.uint8)
    points = [(width // 2, height // 2), (width // 3, height // 2)]
    found = {}
    for given in ({"box": box}, {"points": points}, {"mask": mask}, {"trimap": trimap}, {}):
        (prompt,), _ = read_prompts((height, width), **given)
        drawn = [prompt.draw((height, width), height / 30)] * len(images)
        transparent = [False, True, False]
        found[prompt.kind.alias] = network.predict(encodings, drawn, prompt.kind, transparent)
    return found


# ------------------------------------------------------------------------ graphs


class _ConstantPadding(nn.Conv2d):
    """timm's convolution with TensorFlow's padding, which is constant for multiples of the stride.

    The exporter cannot compute the padding from symbolic sizes in a reasonable time.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Pad and convolve `[B, C, H, W]`."""
        pads: list[int] = []
        for kernel, step, spread in zip(self.kernel_size, self.stride, self.dilation, strict=True):
            total = max(0, (kernel - 1) * spread + 1 - step)
            # `pad` expects the last axis first. The extra padding at the end lets deeper layers,
            # whose features are not used, run on other sizes.
            pads = [total // 2, total - total // 2 + step - 1, *pads]
        return super().forward(nn.functional.pad(input, pads))


class _ExactGroupNorm(nn.GroupNorm):
    """Group norm in float32 that averages axis by axis, since short sums are precise.

    onnxruntime's own operator adds up the values of a group sequentially. In the map of a prompt,
    almost all values are equal, and the error would exceed the tolerance.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize `[B, C, ...]`."""
        values = input.float().unflatten(1, (self.num_groups, -1))  # [B, G, C / G, ...]
        values = values - _mean_of_groups(values)
        scale, shift = (
            value.float().view(self.num_groups, -1, *[1] * (input.ndim - 2))
            for value in (self.weight, self.bias)
        )
        scale = scale * (_mean_of_groups(values * values) + self.eps).rsqrt()
        return (values * scale + shift).flatten(1, 2).to(input.dtype)


def _mean_of_groups(values: torch.Tensor) -> torch.Tensor:
    for axis in range(values.ndim - 1, 1, -1):
        values = values.mean(axis, keepdim=True)
    return values


class _LevelProcessor(MattingAttnProcessor):
    """Attention processor that looks up its keys by the U-Net's level.

    In a graph, the number of tokens is symbolic and cannot be used for the lookup.
    """

    def __init__(self, processor: MattingAttnProcessor, level: int):
        super().__init__(processor.masked, processor.visual)
        self.level = level

    def find_keys(
        self, context: AttentionContext, hidden_states: torch.Tensor
    ) -> list[KeySelection] | None:
        """Return the keys of the level."""
        return context.keys[self.level]


def _prepare(model: Any, dtype: torch.dtype) -> None:
    """Cast a model and replace modules that cannot be exported; equal up to rounding."""
    for part in (model.unet, model.image_prior):
        if part is not None:
            nn.Module.to(part, dtype)
    if max(model.vae.config.block_out_channels) >= MIN_WIDTH_FOR_LOW_PRECISION:
        nn.Module.to(model.vae, dtype)
    undo_optimization(model.vae)
    for module in model.modules():
        if type(module).__name__ == "Conv2dSame":
            module.__class__ = _ConstantPadding
        elif isinstance(module, nn.GroupNorm):
            module.__class__ = _ExactGroupNorm
    last = len(model.unet.config.block_out_channels) - 1

    def level_of(name: str) -> int:
        section, number = name.split(".")[:2]
        if section == "down_blocks":
            return int(number)
        return last - int(number) if section == "up_blocks" else last

    processors = model.unet.attn_processors.items()
    model.unet.set_attn_processor({n: _LevelProcessor(p, level_of(n)) for n, p in processors})


class _Graph(nn.Module):
    """A part of a model, whose floating-point inputs and outputs are float32.

    The U-Net and the image prior take maps in blocks; see `SDMatte.inference.onnx.in_blocks`.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model: Any = model


def _join(blocks: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Undo `in_blocks`, and tell the exporter that batch, rows and columns equal those of other."""
    for axis in (0, 2, 4):
        torch._check(blocks.shape[axis] == other.shape[axis])
    return blocks.flatten(4, 5).flatten(2, 3)


class _Encoder(_Graph):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.encode(image).float()


class _Prior(_Graph):
    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [residual.float() for residual in self.model.encode_prior(_join(image, image))]


class _UNet(_Graph):
    text: torch.Tensor

    def __init__(self, model: Any):
        super().__init__(model)
        self.register_buffer("text", model.encode_caption(None, 1).to(model.unet.dtype))

    def forward(
        self,
        image_latent: torch.Tensor,
        prompt_latent: torch.Tensor,
        prompt: torch.Tensor,
        coords: torch.Tensor,
        is_point: torch.Tensor,
        is_masked: torch.Tensor,
        is_trans: torch.Tensor,
        residuals: list[torch.Tensor],
    ) -> torch.Tensor:
        for value in (coords, is_trans):
            torch._check(value.shape[0] == image_latent.shape[0])
        residuals = [_join(value, image_latent).to(self.model.unet.dtype) for value in residuals]
        prompt, prompt_latent, image_latent = (
            _join(value, image_latent) for value in (prompt, prompt_latent, image_latent)
        )
        unet, settings, dtype = self.model.unet, self.model.settings, self.model.unet.dtype
        keep = torch.where(is_masked, prompt, torch.ones_like(prompt))  # 1: no bias
        grid = (image_latent.shape[2], image_latent.shape[3])
        masks = build_masks(keep, grid, len(unet.config.block_out_channels))
        mode = settings.attention_mask_mode
        named = {"is_point": is_point}
        for name, values in (("bbox_mask", coords[:, :4]), ("point_mask", coords)):
            named |= self.model.coordinates(values, PROMPT_TYPES[name], coords.device)
        latent = self.model.run_unet(
            image_latent.to(dtype),
            prompt_latent.to(dtype),
            {level: select_keys(mask, mode, all_keys=True) for level, mask in enumerate(masks)},
            named,
            is_trans * int(settings.use_opacity_input),
            self.text.expand(coords.shape[0], -1, -1),
            residuals or None,
        )
        return latent.float()


class _Decoder(_Graph):
    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latent)


@torch.no_grad()
def _write_graphs(model: SDMatte, folder: Path) -> None:
    rows = max(2, _SAMPLE_SIDE // model.size_divisor)
    columns = rows + 1
    image = torch.rand(2, 3, rows * model.size_divisor, columns * model.size_divisor) * 2 - 1
    latent = model.encode(image).float()
    residuals = [residual.float() for residual in model.encode_prior(image) or ()]
    blocks = [in_blocks(value, rows, columns) for value in (image, latent, *residuals)]
    is_point, is_masked = torch.tensor(True), torch.tensor(True)
    coords = torch.rand(2, 2 * NUM_POINTS)
    is_trans = torch.tensor([0, 1])
    names = [f"residual_{level}" for level in range(len(residuals))]
    if residuals:
        _export(_Prior(model), blocks[:1], [_BLOCKS], ["image"], names, folder / PRIOR)
    # If two inputs were the same tensor, the exporter would merge them into one.
    latents = blocks[1], blocks[1].clone()
    prompt = blocks[0][:, :1].contiguous()
    batch = {0: _BATCH}
    _export(
        _UNet(model),
        [*latents, prompt, coords, is_point, is_masked, is_trans, blocks[2:]],
        [*[_BLOCKS] * 3, batch, None, None, batch, [_BLOCKS] * len(residuals)],
        ["image_latent", "prompt_latent", "prompt", "coords", "is_point", "is_masked", "is_trans"]
        + names,
        ["latent"],
        folder / UNET,
    )
    for graph, value, given, found, name in (
        (_Encoder(model), image, "image", "latent", ENCODER),
        (_Decoder(model), latent, "latent", "alpha", DECODER),
    ):
        height, width = value.shape[-2] // rows * _HEIGHT, value.shape[-1] // columns * _WIDTH
        shape = {0: _BATCH, 2: height, 3: width}
        _export(graph, [value], [shape], [given], [found], folder / name)


def _export(
    graph: _Graph,
    inputs: Sequence[Any],
    shapes: Sequence[Any],
    names: Sequence[str],
    outputs: Sequence[str],
    path: Path,
) -> None:
    logger.info("Exporting %s ...", path.name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# ", UserWarning)  # about axis names
        program = torch.onnx.export(
            graph.eval(),
            tuple(inputs),
            dynamo=True,
            dynamic_shapes=tuple(shapes),
            input_names=names,
            output_names=outputs,
            verbose=False,
        )
    assert program is not None  # with dynamo=True
    program.save(path)  # weights above 1.5 GB go to a separate file beside it
