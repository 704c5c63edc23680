"""Measures time and peak memory of a full-size SDMatte with random weights, on a CPU.

One case a process, so that the peak is that case's own:

    python script/benchmark_memory.py forward 512
    python script/benchmark_memory.py forward 1024
    python script/benchmark_memory.py train 256
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import torch

import SDMatte
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.losses import MattingCriterion
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


def build() -> Model:
    """Builds the full-size model from its configs, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        for name, config in CONFIGS.items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(config))
        toy = Path(SDMatte.__file__).parent / "assets" / "small" / "tokenizer"
        shutil.copytree(toy, Path(folder) / "tokenizer")
        torch.manual_seed(0)
        return Model(folder, load_weight=False, aux_input="bbox_mask")


def make_batch(size: int) -> dict[str, torch.Tensor]:
    """Makes a picture of noise with a box of 30 % of it."""
    low, high = round(0.226 * size), round(0.774 * size)
    mask = -torch.ones(1, 1, size, size)
    mask[..., low:high, low:high] = 1
    return {
        "image": torch.rand(1, 3, size, size) * 2 - 1,
        "bbox_mask": mask,
        "bbox_coords": torch.tensor([[low, low, high, high]]) / size,
    }


def main(mode: str, size: int) -> None:
    """Runs one case and prints its numbers."""
    model, batch = build(), make_batch(size)
    start = time.perf_counter()
    if mode == "forward":
        model.eval()
        with torch.no_grad():
            alpha = model(batch)
    else:
        model.train()
        model.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-5)
        alpha = model(batch)
        truth = (batch["bbox_mask"] + 1) / 2
        trimap = torch.zeros_like(truth)
        sum(MattingCriterion(LOSSES, size)(alpha, truth, trimap).values()).backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if not bool(torch.isfinite(alpha).all()):
        raise SystemExit("The result is not finite.")
    print(
        f"{mode} at {size}x{size}, float32, {torch.get_num_threads()} threads: "
        f"{seconds:.1f} s, peak memory {peak:.2f} GiB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("forward", "train"))
    parser.add_argument("size", type=int, help="side of the picture, a multiple of 64")
    arguments = parser.parse_args()
    main(arguments.mode, arguments.size)
