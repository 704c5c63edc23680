"""ComfyUI nodes that load a model and predict mattes by box, points, mask or trimap.

IMAGE is float ``[B, H, W, C]`` in [0, 1], MASK float ``[B, H, W]`` in [0, 1], as everywhere in
ComfyUI. The ids of the nodes are stored in workflows and must never change.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from SDMatte.errors import PromptError
from SDMatte.inference.defaults import SMALL_MODEL
from SDMatte.inference.loading import find_model
from SDMatte.inference.predictor import MattePredictor
from SDMatte.prompts.requests import as_pairs
from SDMatte.runtime.devices import choose_device

try:
    import comfy.model_management
    import comfy.model_patcher
    import comfy.utils

    HAS_COMFY = True
except ImportError:  # in tests, and in other programs that run nodes
    HAS_COMFY = False

MODEL = "SDMATTE_MODEL"


class LoadedModel:
    """A model that ComfyUI moves to the device when needed, and away when memory is short.

    Attributes:
        predictor: The predictor, whose weights may be on another device until `activate`.
    """

    def __init__(self, name: str, dtype: str, resolution: int, keep_aspect: bool):
        device = comfy.model_management.get_torch_device() if HAS_COMFY else choose_device()
        source = find_model(name or SMALL_MODEL)
        model = source.load(device, dtype)  # to the CPU
        model.release_text_encoder()
        self.predictor = MattePredictor(
            model,
            resolution=resolution or None,
            keep_aspect=keep_aspect or None,
            defaults=source.defaults,
            device=device,
        )
        # Without the text encoder, whose memory is already released.
        weights = torch.nn.ModuleDict({"unet": model.unet, "vae": model.vae})
        if model.image_prior is not None:
            weights["image_prior"] = model.image_prior
        self._patcher = None
        if HAS_COMFY:
            away = comfy.model_management.unet_offload_device()
            self._patcher = comfy.model_patcher.ModelPatcher(weights, device, away)
        else:
            weights.to(device)

    def activate(self) -> MattePredictor:
        """Return the predictor with its weights on its device."""
        if self._patcher is not None:
            comfy.model_management.load_models_gpu([self._patcher])
        return self.predictor


@functools.lru_cache(maxsize=1)
def load_model(name: str, dtype: str, resolution: int, keep_aspect: bool) -> LoadedModel:
    """Load a model and keep the last one, independently of ComfyUI's cache."""
    # ComfyUI runs nodes in inference mode, whose tensors lack the version that the model reads.
    with torch.inference_mode(False):
        return LoadedModel(name, dtype, resolution, keep_aspect)


class LoadModel:
    """Load a published model, a saved one or a training run."""

    CATEGORY = "SDMatte"
    DESCRIPTION = "Load SDMatte from a folder or the Hugging Face hub."
    FUNCTION = "run"
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs."""
        tooltip = "A folder, a checkpoint or a hub id; empty: the bundled small model."
        resolution = {"default": 0, "min": 0, "max": 8192, "step": 64}
        return {
            "required": {
                "name": ("STRING", {"default": "LongfeiHuang/SDMatte", "tooltip": tooltip}),
                "dtype": (["auto", "float32", "bfloat16", "float16"],),
                "resolution": ("INT", {**resolution, "tooltip": "0: the model's default."}),
                "keep_aspect": ("BOOLEAN", {"default": False}),
            }
        }

    def run(self, name: str, dtype: str, resolution: int, keep_aspect: bool) -> tuple[LoadedModel]:
        """Load the model."""
        return (load_model(name.strip(), dtype, resolution, keep_aspect),)


class Matte:
    """Base of the nodes that make mattes; each adds the inputs of its prompt."""

    CATEGORY = "SDMatte"
    FUNCTION = "run"
    RETURN_TYPES = ("MASK", "IMAGE")
    RETURN_NAMES = ("alpha", "foreground")
    OUTPUT_TOOLTIPS = (
        "The matte: 1 is the object.",
        "The object's own colors, without those of the background at soft edges.",
    )
    PROMPT: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs."""
        tooltips = {
            "transparent": "The object is transparent: glass, smoke, veils.",
            "tiles": "A second pass over the edges at full resolution.",
            "foreground_colors": "Estimate the object's own colors; if off, use the image's.",
        }
        switches = {
            name: ("BOOLEAN", {"default": name == "foreground_colors", "tooltip": text})
            for name, text in tooltips.items()
        }
        return {"required": {"model": (MODEL,), "image": ("IMAGE",), **cls.PROMPT, **switches}}

    def run(
        self,
        model: LoadedModel,
        image: torch.Tensor,
        transparent: bool,
        tiles: bool,
        foreground_colors: bool,
        **prompt: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the mattes of a batch.

        Returns:
            Alpha, ``[B, H, W]``, and colors, ``[B, H, W, 3]``, in [0, 1].
        """
        if image.ndim != 4 or not len(image) or not image.is_floating_point():
            raise PromptError(
                f"The images must be a batch [B, H, W, C] with values from 0 to 1; got "
                f"{image.dtype} {list(image.shape)}."
            )
        prompts = self.read(**prompt)
        count = max(len(image), len(prompts))
        if {len(image), len(prompts)} - {1, count}:
            raise PromptError(
                f"Got {len(image)} images and {len(prompts)} masks: give equal numbers, or one."
            )
        predictor = model.activate()
        bar = comfy.utils.ProgressBar(count) if HAS_COMFY else None
        alphas, colors = [], []
        for index in range(count):
            if index < len(image):
                pixels = image[index].clamp(0, 1).movedim(-1, 0)  # [H, W, C] -> [C, H, W]
                encoded = predictor.encode(pixels)
            result = predictor.predict(
                **prompts[min(index, len(prompts) - 1)],
                transparent=transparent,
                refine="tiles" if tiles else None,
                image=encoded,
            )
            alphas.append(torch.from_numpy(result.alpha))
            own = result.foreground if foreground_colors else result.image
            colors.append(torch.from_numpy(own).float() / 255)  # [0, 255] -> [0, 1]
            if bar is not None:
                bar.update(1)
        return torch.stack(alphas), torch.stack(colors)

    def read(self, **prompt: Any) -> list[Mapping[str, Any]]:
        """Return the arguments of `MattePredictor.predict`, one set per image or one for all."""
        raise NotImplementedError


class MatteByBox(Matte):
    """Predict mattes of the object in a box."""

    DESCRIPTION = "Matte of the object in a box, whose edges are in pixels."
    PROMPT: ClassVar[dict[str, Any]] = {
        name: ("INT", {"default": value, "min": 0, "max": 2**15})
        for name, value in (("x0", 0), ("y0", 0), ("x1", 512), ("y1", 512))
    }

    def read(self, x0: int, y0: int, x1: int, y1: int) -> list[Mapping[str, Any]]:
        """Return the box."""
        return [{"box": (x0, y0, x1, y1)}]


class MatteByPoints(Matte):
    """Predict mattes of the object at one to ten points."""

    DESCRIPTION = "Matte of the object at one to ten points: x y in pixels, one point per line."
    PROMPT: ClassVar[dict[str, Any]] = {"points": ("STRING", {"default": "", "multiline": True})}

    def read(self, points: str) -> list[Mapping[str, Any]]:
        """Return the points."""
        words = [word for word in re.split(r"[\s,;()\[\]]+", points) if word]
        try:
            numbers = [float(word) for word in words]
        except ValueError as error:
            raise PromptError(f"Points must be x y, one per line; got {points!r}.") from error
        if not numbers:
            raise PromptError("Give at least one point: x y in pixels of the image.")
        return [{"points": as_pairs(numbers, "points")}]


class MatteByMask(Matte):
    """Predict mattes of the object under a rough mask."""

    DESCRIPTION = "Matte of the object under a rough mask, such as one painted in the mask editor."
    PROMPT: ClassVar[dict[str, Any]] = {"mask": ("MASK",)}

    def read(self, mask: torch.Tensor) -> list[Mapping[str, Any]]:
        """Return the masks; raise a `PromptError` if one is empty."""
        masks = _as_batch(mask, "mask")
        if not (masks >= 0.5).flatten(1).any(1).all():
            raise PromptError("The mask is empty: paint over the object in the mask editor.")
        return [{"mask": one.float().clamp(0, 1).cpu().numpy()} for one in masks]


class MatteByTrimap(Matte):
    """Predict mattes by trimaps."""

    DESCRIPTION = "Matte by a trimap: 0 is background, 0.5 unknown, 1 foreground."
    PROMPT: ClassVar[dict[str, Any]] = {"trimap": ("MASK",)}

    def read(self, trimap: torch.Tensor) -> list[Mapping[str, Any]]:
        """Return the trimaps, with values rounded to the nearest of 0, 0.5 and 1."""
        levels = (_as_batch(trimap, "trimap").float().clamp(0, 1) * 2).round().long().cpu()
        values = torch.tensor([0, 128, 255], dtype=torch.uint8)[levels]  # [B, H, W]
        return [{"trimap": one.numpy()} for one in values]


def _as_batch(mask: torch.Tensor, name: str) -> torch.Tensor:
    """Return a mask as ``[B, H, W]``; some nodes omit the batch or add a channel.

    Raises:
        PromptError: The shape is another one, or values are not finite.
    """
    masks = mask[None] if mask.ndim == 2 else mask
    masks = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
    if masks.ndim != 3 or not masks.numel() or not masks.isfinite().all():
        raise PromptError(
            f"The {name} must be finite values [B, H, W]; got {mask.dtype} {list(mask.shape)}."
        )
    return masks


NODE_CLASS_MAPPINGS = {
    "SDMatteLoadModel": LoadModel,
    "SDMatteBox": MatteByBox,
    "SDMattePoints": MatteByPoints,
    "SDMatteMask": MatteByMask,
    "SDMatteTrimap": MatteByTrimap,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "SDMatteLoadModel": "SDMatte: load model",
    "SDMatteBox": "SDMatte: matte by box",
    "SDMattePoints": "SDMatte: matte by points",
    "SDMatteMask": "SDMatte: matte by mask",
    "SDMatteTrimap": "SDMatte: matte by trimap",
}
