"""Shared code of the benchmarks: full-size random models, plain variants, subprocesses."""

import argparse
import gc
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention, AttnProcessor

import SDMatte
from SDMatte.cli.common import integer
from SDMatte.errors import ConfigError
from SDMatte.modeling import LiteSDMatte
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.attention import AttentionContext, MattingAttnProcessor
from SDMatte.modeling.unet import COORDINATE_SETTINGS
from SDMatte.runtime.files import find_obstacle

# The configs of Stable Diffusion v2.
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
# Differences of BK-SDM v2 base and TAESD, and the autoencoder of a tiny LiteSDMatte.
LITE_UNET = {"layers_per_block": 1}
LITE_VAE = {"_class_name": "AutoencoderTiny", "latent_channels": 4, "scaling_factor": 1.0}
TINY_VAE = {
    "_class_name": "AutoencoderTiny",
    "latent_channels": 8,
    "encoder_block_out_channels": [16, 16, 16],
    "decoder_block_out_channels": [16, 16, 16],
    "num_encoder_blocks": [1, 1, 1],
    "num_decoder_blocks": [1, 1, 1],
    "scaling_factor": 1.0,
}
LOSSES = ["unknown_l1_loss", "known_l1_loss", "known_lap_loss", "unknown_lap_loss"]
SMALL = Path(SDMatte.__file__).parent / "assets" / "small"


# ----------------------------------------------------------------------- models


class PlainAttnProcessor:
    """Attention by definition: materializes all scores and masks them with a bias."""

    def __init__(self, settings: MattingAttnProcessor):
        self.masked, self.visual = settings.masked, settings.visual
        self.attend = AttnProcessor()

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        context: AttentionContext | None = None,
    ) -> torch.Tensor:
        """Attend to the same keys as `MattingAttnProcessor`."""
        if encoder_hidden_states is None and self.masked:
            keys = context.keys.get(hidden_states.shape[1])
            attention_mask = None if keys is None else keys[0].mask(hidden_states.dtype)
        elif encoder_hidden_states is not None and self.visual:
            encoder_hidden_states = context.visual_tokens
        return self.attend(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class _Plain:
    """Mixin that turns off all optimizations of this project."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        processors = self.unet.attn_processors
        self.unet.set_attn_processor({n: PlainAttnProcessor(p) for n, p in processors.items()})
        self._all_keys = True
        if isinstance(self.vae, AutoencoderKL):  # back to diffusers' own
            tensors = self.vae.state_dict()
            self.vae = AutoencoderKL.from_config(self.vae.config).requires_grad_(False)
            self.vae.load_state_dict(tensors)
            self.train()

    def encode_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """Encode prompt maps in a separate call, as RGB images."""
        return self.encode(prompt.to(self.vae.device).expand(-1, 3, -1, -1))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode latents without changing their memory format."""
        decoded = self.vae.decode(latent / self.vae.config.scaling_factor).sample
        return (decoded.mean(dim=1, keepdim=True).clip(-1, 1) + 1) / 2  # [-1, 1] -> [0, 1]

    def encode_caption(self, caption: Sequence[str] | None, size: int) -> torch.Tensor:
        """Encode the empty captions in every call."""
        return self._run_text_encoder([""] * size)


class PlainModel(_Plain, Model):
    """SDMatte without optimizations."""

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images without changing their memory format."""
        return self.vae.encode(image).latent_dist.mean * self.vae.config.scaling_factor


class PlainLite(_Plain, LiteSDMatte):
    """LiteSDMatte without optimizations."""


def write_configs(folder: Path, lite: bool = False, tiny: bool = False) -> None:
    """Write the component configs of a full-size model, or of one of the small model's size."""
    if tiny:
        configs = {n: json.loads((SMALL / n / "config.json").read_text()) for n in CONFIGS}
    else:
        configs = dict(CONFIGS)
        if lite:
            configs["unet"] = CONFIGS["unet"] | LITE_UNET
    if lite:
        configs["vae"] = TINY_VAE if tiny else LITE_VAE
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    shutil.copytree(SMALL / "tokenizer", folder / "tokenizer")


def build(
    cls: type[Model] = Model, tiny: bool = False, device: torch.device | None = None
) -> Model:
    """Build a model with fixed random weights, on the device that draws them (default: the CPU)."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, device or nullcontext():
        write_configs(Path(folder), issubclass(cls, LiteSDMatte), tiny)
        return cls(folder, load_weight=False, aux_input="bbox_mask")


def make_batch(size: int, count: int = 1) -> dict[str, Any]:
    """Make `count` noise images of `size` pixels, with a box of 30 % as prompt and alpha."""
    low, high = round(0.226 * size), round(0.774 * size)
    mask = -torch.ones(count, 1, size, size)
    mask[..., low:high, low:high] = 1
    trimap = mask.clone()
    trimap[..., low:high, low:high] = 0
    trimap[..., size // 3 : -size // 3, size // 3 : -size // 3] = 1
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(count, 3, size, size, generator=generator) * 2 - 1,
        "bbox_mask": mask,
        "bbox_coords": torch.tensor([[low, low, high, high]] * count) / size,
        "alpha": mask,
        "trimap": trimap,
        "image_name": ["noise"] * count,
    }


# ------------------------------------------------------------------ measurement


def case_parser(
    description: str, cases: Iterable[str], default_cases: Sequence[str], default_sizes: str
) -> argparse.ArgumentParser:
    """Return a parser with the options that `measure_in_subprocess` passes on."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        epilog=description.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes", type=_size, nargs="+", help=f"multiples of 64 (default: {default_sizes})"
    )
    parser.add_argument("--batches", type=integer(1), nargs="+", default=[1], help="batch sizes")
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(default_cases))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="the small model, at 64 pixels")
    parser.add_argument(
        "--json", type=_output_file, help="file to append each measurement to, as a line"
    )
    return parser


def _size(text: str) -> int:
    size = integer(64)(text)
    if size % 64:
        raise argparse.ArgumentTypeError(f"must be a multiple of 64; got {size}")
    return size


def _output_file(text: str) -> Path:
    obstacle = find_obstacle(Path(text))
    if obstacle is not None:
        raise argparse.ArgumentTypeError(f"cannot write {text}: {obstacle}")
    return Path(text)


Point = tuple[int, int]
"""Size of the images in pixels, and size of the batch."""


def point_groups(sizes: Sequence[int], batches: Sequence[int], on_gpu: bool) -> list[list[Point]]:
    """Group points by process: all in one on a GPU, whose peak memory can be reset."""
    points = list(itertools.product(sizes, batches))
    return [points] if on_gpu else [[point] for point in points]


def measure_in_subprocess(
    script: str, case: str, points: Sequence[Point], *options: str
) -> list[dict[str, Any] | None]:
    """Measure one case in a separate process, so that its peak memory is not shared.

    Returns:
        What the script printed as JSON for each point; None where memory ran out.
    """
    sizes, batches = (map(str, dict.fromkeys(values)) for values in zip(*points, strict=True))
    command = [sys.executable, script, "--cases", case, "--sizes", *sizes, "--batches", *batches]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode == 0:
        return [json.loads(line) for line in done.stdout.splitlines()[-len(points) :]]
    if done.returncode == -9 or _is_out_of_memory(done.stderr):
        return [None] * len(points)
    raise SystemExit(f"{case} at {points} failed:\n{done.stderr}")


def _is_out_of_memory(text: str) -> bool:
    known = ("out of memory", "Out of memory", "can't allocate memory", "MemoryError", "bad_alloc")
    return any(words in text for words in known)


def print_measurements(
    measure: Callable[[int, int], dict[str, Any]], points: Sequence[Point], device: torch.device
) -> None:
    """Measure in this process, and print a line of JSON per point: null where memory ran out."""
    for point in points:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            line = json.dumps(measure(*point))
        except (RuntimeError, ConfigError) as error:
            if device.type != "cuda" or not _is_out_of_memory(str(error)):
                raise
            line = "null"
        print(line, flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def record(path: Path | None, **values: Any) -> None:
    """Append a measurement to a file, as a line of JSON."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def allow_tf32(allowed: bool) -> None:
    """Let a GPU compute in TF32 or not; by torch's default only convolutions do."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
