"""Full-size models with random weights, and a batch for them: for the benchmarks beside it."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention, AttnProcessor

import SDMatte
from SDMatte.modeling import LiteSDMatte
from SDMatte.modeling import SDMatte as Model
from SDMatte.modeling.attention import AttentionContext, MattingAttnProcessor
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
LITE_CONFIGS = {  # of BK-SDM v2 base and TAESD
    **CONFIGS,
    "unet": {**CONFIGS["unet"], "layers_per_block": 1},
    "vae": {"_class_name": "AutoencoderTiny", "latent_channels": 4, "scaling_factor": 1.0},
}
LOSSES = ["unknown_l1_loss", "known_l1_loss", "known_lap_loss", "unknown_lap_loss"]
SMALL = Path(SDMatte.__file__).parent / "assets" / "small"


class MaterialisedScores:
    """Attention as the definition has it: a matrix of all scores, masked by a bias."""

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
        """Attends to what `MattingAttnProcessor` attends to."""
        if encoder_hidden_states is None and self.masked:
            keys = context.keys.get(hidden_states.shape[1])
            attention_mask = None if keys is None else keys.bias.unsqueeze(1)  # [B, 1, K]
        elif encoder_hidden_states is not None and self.visual:
            encoder_hidden_states = context.visual_tokens
        return self.attend(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class _Plain:
    """A network without what makes it faster."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        processors = self.unet.attn_processors
        self.unet.set_attn_processor({n: MaterialisedScores(p) for n, p in processors.items()})
        self._all_keys = True
        if isinstance(self.vae, AutoencoderKL):  # diffusers' own again
            tensors = self.vae.state_dict()
            self.vae = AutoencoderKL.from_config(self.vae.config).requires_grad_(False)
            self.vae.load_state_dict(tensors)
            self.train()

    def encode_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """Encodes prompts as pictures."""
        return self.encode(prompt.expand(-1, 3, -1, -1))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decodes latents in the layout that they have."""
        decoded = self.vae.decode(latent / self.vae.config.scaling_factor).sample
        return (decoded.mean(dim=1, keepdim=True).clip(-1, 1) + 1) / 2  # [-1, 1] -> [0, 1]

    def encode_caption(self, caption: Sequence[str] | None, size: int) -> torch.Tensor:
        """Encodes the empty captions anew."""
        return self._run_text_encoder([""] * size)


class PlainModel(_Plain, Model):
    """SDMatte, plain."""

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encodes pictures in the layout that they have."""
        return self.vae.encode(image).latent_dist.mean * self.vae.config.scaling_factor


class PlainLite(_Plain, LiteSDMatte):
    """LiteSDMatte, plain."""


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
        write_configs(Path(folder), LITE_CONFIGS if issubclass(cls, LiteSDMatte) else CONFIGS)
        return cls(folder, load_weight=False, aux_input="bbox_mask")


def write_configs(folder: Path, configs: Mapping[str, Any]) -> None:
    """Writes a model folder without weights."""
    for name, config in configs.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    shutil.copytree(SMALL / "tokenizer", folder / "tokenizer")


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
