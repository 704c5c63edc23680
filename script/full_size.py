"""The full-size SDMatte with random weights, and a batch for it: for the benchmarks beside it."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import SDMatte
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.unet import COORDINATE_SETTINGS

# Stable Diffusion v2's own configs.
CONFIGS = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": [5, 10, 20, 20],
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "use_linear_projection": True,
        **COORDINATE_SETTINGS,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "vocab_size": 49408,
        "hidden_act": "gelu",
    },
}
LOSSES = ["unknown_l1_loss", "known_l1_loss", "known_lap_loss", "unknown_lap_loss"]
SMALL = Path(SDMatte.__file__).parent / "assets" / "small"


def build(cls: type[Model] = Model, tiny: bool = False) -> Model:
    """Builds a model from configs, with random weights that are always the same.

    Args:
        cls: The model's class.
        tiny: Of the small model's size instead.
    """
    torch.manual_seed(0)
    if tiny:
        return cls(SMALL, load_weight=False, aux_input="bbox_mask")
    with tempfile.TemporaryDirectory() as folder:
        for name, config in CONFIGS.items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(config))
        shutil.copytree(SMALL / "tokenizer", Path(folder) / "tokenizer")
        return cls(folder, load_weight=False, aux_input="bbox_mask")


def make_batch(size: int) -> dict[str, Any]:
    """Makes a picture of noise with a box of 30 % of it, which is the true alpha, too.

    Args:
        size: Height and width.
    """
    low, high = round(0.226 * size), round(0.774 * size)
    mask = -torch.ones(1, 1, size, size)
    mask[..., low:high, low:high] = 1
    trimap = mask.clone()  # unknown is a frame half as wide as what is inside
    trimap[..., low:high, low:high] = 0
    trimap[..., size // 3 : -size // 3, size // 3 : -size // 3] = 1
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(1, 3, size, size, generator=generator) * 2 - 1,
        "bbox_mask": mask,
        "bbox_coords": torch.tensor([[low, low, high, high]]) / size,
        "alpha": mask,
        "trimap": trimap,
        "image_name": ["noise"],
    }
