"""Tiny models and batches for tests."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch

import SDMatte as package
from SDMatte.modeling import SDMatte
from SDMatte.prompts.types import PROMPT_TYPES

# For two ways to compute the same alpha, features or latents in float32. The order of sums differs
# between processors and numbers of threads; the largest measured difference is 5e-6.
ROUNDING = {"rtol": 1e-4, "atol": 5e-5}
SMALL = Path(package.__file__).parent / "assets" / "small"


@functools.cache
def tiny_folder() -> Path:
    """The folder of the small model with even smaller configs and no weights."""
    folder = Path(tempfile.mkdtemp(prefix="sdmatte-tests-"))
    changes = {
        "unet": {
            "block_out_channels": [32] * 4,
            "attention_head_dim": [2] * 4,
            "cross_attention_dim": 64,
        },
        "vae": {"block_out_channels": [8] * 3},
        "text_encoder": {"hidden_size": 64, "intermediate_size": 64},
    }
    for name, change in changes.items():
        config = json.loads((SMALL / name / "config.json").read_text())
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({**config, **change}))
    shutil.copytree(SMALL / "tokenizer", folder / "tokenizer")
    return folder


def tiny_model(seed: int = 0, **settings) -> SDMatte:
    """A tiny model with random weights whose mattes are not constant."""
    torch.manual_seed(seed)
    settings = {"load_weight": False, "aux_input": "bbox_mask", **settings}
    model = SDMatte(tiny_folder(), **settings).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.05 * noise.to(parameter)
    return model


def make_batch(size: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> dict:
    """A batch as the loader returns it, with every prompt."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    alpha = (rand(size, 1, height, width) > 0.5).float() * 2 - 1
    batch = {
        "image": rand(size, 3, height, width) * 2 - 1,
        "alpha": alpha,
        "trimap": (rand(size, 1, height, width) * 3).floor() - 1,
        "is_trans": torch.tensor([0, 1] * size)[:size],
        "caption": [""] * size,
        "image_name": [f"{i}.png" for i in range(size)],
    }
    for kind in PROMPT_TYPES.values():
        box = -torch.ones(size, 1, height, width)
        box[..., height // 4 : height // 2, width // 4 :] = 1
        batch.setdefault(kind.mask_key, box)
        batch[kind.coords_key] = rand(size, 20 if kind.is_point else 4)
    return batch
