"""Every switch of the constructor, alone and in pairs, against a literal implementation.

`expected_alpha` computes the forward pass step by step on diffusers' plain U-Net, with the whole
score matrix, the prompt encoded like an image and nothing cached or left out. Both compute in
double precision, so that a wrong term cannot hide in rounding.
"""

import json
import shutil
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from golden_cases import GOLDEN, fill, inputs

from SDMatte.modeling import LiteSDMatte, SDMatte
from SDMatte.modeling.unet import COORDINATE_SETTINGS
from SDMatte.modeling.weights import component_config
from SDMatte.prompts.types import PROMPT_TYPES

MODELS = {"sdmatte": SDMatte, "litesdmatte": LiteSDMatte}
COORDINATES = {p.mask_key: p.coords_key for p in PROMPT_TYPES.values()}
SWITCHES = [
    {"use_coor_input": False},
    {"use_attention_mask": False},
    {"attn_mask_aux_input": ("point_mask", "mask")},
    {"attn_mask_aux_input": ("bbox_mask", "trimap", "auto_mask")},
    {"use_encoder_hidden_states": False},
    {"residual_connection": True},
    {"use_attention_mask_list": (False, True, True)},
    {"use_attention_mask_list": (True, False, False)},
    {"use_encoder_hidden_states_list": (True, False, False)},
    {"use_encoder_hidden_states_list": (False, True, True)},
]
DEFAULTS = {
    "use_coor_input": True,
    "use_attention_mask": True,
    "attn_mask_aux_input": ("point_mask", "bbox_mask", "mask"),
    "use_encoder_hidden_states": True,
    "residual_connection": False,
    "use_attention_mask_list": (True, True, True),
    "use_encoder_hidden_states_list": (False, True, False),
}
# Compared in pairs, and for every prompt: they meet in the same attention layers.
PAIRED = [
    switch
    for switch in SWITCHES
    if switch.keys() & {"use_attention_mask", "residual_connection"}
    or switch.get("use_attention_mask_list") == (False, True, True)
    or switch.get("use_encoder_hidden_states_list") == (False, True, True)
]


class PlainAttention:
    """Attention with all its scores; ``bias`` by the number of keys, for self-attention."""

    def __init__(self, residual: bool):
        self.residual = residual
        self.bias: dict[int, torch.Tensor] = {}

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, keys), (attn.to_v, keys))
        )
        scores = q @ k.transpose(-1, -2) * attn.scale  # [B, heads, N, K]
        if encoder_hidden_states is None and self.bias:
            scores = scores + self.bias[keys.shape[1]][:, None, None]
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        out = attn.to_out[0](out)
        return out + hidden_states if self.residual else out


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """A narrow model's folder and weights, and diffusers' plain parts with the same weights."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind) / "pretrained"
    shutil.copytree(GOLDEN / f"pretrained_{kind}", folder)
    config = component_config(folder, "unet")
    # As in Stable Diffusion, only the first level has its width; cross-attentions have another.
    config |= {"block_out_channels": [64, 32, 32, 32], "attention_head_dim": [4, 2, 2, 2]}
    config |= {"cross_attention_dim": 96}
    (folder / "unet/config.json").write_text(json.dumps(config))
    text = component_config(folder, "text_encoder") | {"hidden_size": 96, "num_attention_heads": 2}
    (folder / "text_encoder/config.json").write_text(json.dumps(text))
    model = MODELS[kind](folder, load_weight=False)
    state = {name: fill(name, list(v.shape), 8) for name, v in model.state_dict().items()}

    vae = MODELS[kind].vae_class.from_config(component_config(folder, "vae")).eval()
    vae.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("vae.")})
    plain = {k: v for k, v in config.items() if k not in COORDINATE_SETTINGS}
    unet = UNet2DConditionModel.from_config({**plain, "in_channels": 8}).eval()
    weights = {k[5:]: v for k, v in state.items() if k.startswith("unet.")}
    unet.load_state_dict(
        {k: v for k, v in weights.items() if not k.startswith(("aux_", "bbox_", "point_"))}
    )
    double = {k: v.double() for k, v in weights.items()}
    return Case(MODELS[kind], folder, state, vae.double(), unet.double(), double)


@dataclass
class Case:
    model: type
    folder: Path
    state: dict
    vae: torch.nn.Module
    unet: UNet2DConditionModel
    weights: dict


@torch.no_grad()
def expected_alpha(case: Case, batch: dict, text: torch.Tensor, prompt_name: str, s: dict):
    """Compute alpha by the steps of the model's description."""
    vae, unet, weights = case.vae, case.unet, case.weights
    latent = encode(vae, batch["image"]), encode(vae, batch[prompt_name].repeat(1, 3, 1, 1))

    time = unet.time_embedding(unet.time_proj(1 - batch["is_trans"]).double())
    time = time + coordinates(batch, prompt_name, weights, s["use_coor_input"])

    visual = F.conv2d(
        latent[1], weights["aux_conv_in.weight"], weights["aux_conv_in.bias"], padding=1
    )
    visual = visual.flatten(2).transpose(1, 2)
    reads_visual = [
        s["use_encoder_hidden_states"] and v for v in s["use_encoder_hidden_states_list"]
    ]
    down_text, mid_text, up_text = (visual if v else text for v in reads_visual)

    masked = s["use_attention_mask"] and prompt_name in s["attn_mask_aux_input"]
    bias = {}
    if masked and prompt_name not in ("auto_mask", "trimap"):
        mask = F.interpolate((batch[prompt_name] + 1) / 2, size=latent[0].shape[-2:])
        for level in range(4):
            at_level = F.interpolate(mask, size=[n >> level for n in mask.shape[-2:]]).flatten(1)
            bias[at_level.shape[1]] = (1 - at_level) * -10000
    width = unet.config.block_out_channels[0]
    for name, masks in zip(("down", "mid", "up"), s["use_attention_mask_list"], strict=True):
        for key, module in unet.named_modules():
            if key.startswith(name) and hasattr(module, "to_q"):
                first = module.cross_attention_dim == width
                module.processor = PlainAttention(s["residual_connection"] and first)
                module.processor.bias = bias if masks else {}

    x = unet.conv_in(torch.cat(latent, 1))
    skips = [x]
    for block in unet.down_blocks:
        extra = {"encoder_hidden_states": down_text} if hasattr(block, "attentions") else {}
        x, more = block(hidden_states=x, temb=time, **extra)
        skips += more
    if unet.mid_block is not None:
        x = unet.mid_block(x, time, encoder_hidden_states=mid_text)
    for block in unet.up_blocks:
        count = len(block.resnets)
        extra = {"encoder_hidden_states": up_text} if hasattr(block, "attentions") else {}
        x = block(x, tuple(skips[-count:]), time, **extra)
        skips = skips[:-count]
    x = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    decoded = vae.decode(x / vae.config.scaling_factor).sample
    return (decoded.mean(1, keepdim=True).clip(-1, 1) + 1) / 2


def encode(vae, image):
    if hasattr(vae, "quant_conv"):
        return vae.encode(image).latent_dist.mean * vae.config.scaling_factor
    return vae.encode((image + 1) / 2).latents * vae.config.scaling_factor


def coordinates(batch, prompt_name, weights, used):
    coords = batch[COORDINATES[prompt_name]]
    name = "point_embedding" if prompt_name == "point_mask" else "bbox_embedding"
    if name == "bbox_embedding":
        if not used or prompt_name in ("auto_mask", "trimap"):
            coords = torch.tensor([[0.0, 0, 1, 1]]).repeat(len(coords), 1)
        channels, flip = 320, True
    else:
        coords = coords if used else torch.zeros_like(coords)
        channels, flip = 84, True
    columns = [
        get_timestep_embedding(column, channels, flip_sin_to_cos=flip, downscale_freq_shift=0)
        for column in coords.T
    ]
    linear = [
        lambda x, n=n: F.linear(
            x, weights[f"{name}.linear_{n}.weight"], weights[f"{name}.linear_{n}.bias"]
        )
        for n in (1, 2)
    ]
    return linear[1](F.silu(linear[0](torch.cat(columns, 1).double())))


@pytest.mark.parametrize(
    ("case", "prompt_name", "switches"),
    [
        ("sdmatte", "bbox_mask", [*SWITCHES, *(a | b for a, b in combinations(PAIRED, 2))]),
        ("sdmatte", "point_mask", SWITCHES),
        *(("sdmatte", name, PAIRED) for name in ("mask", "auto_mask", "trimap")),
        ("litesdmatte", "bbox_mask", PAIRED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
    indirect=["case"],
)
def test_switches_alone_and_in_pairs(case, prompt_name, switches):
    tensors = {k: v[:1] for k, v in inputs(8).items() if k != "caption"}
    batch = {k: v[..., ::2, :].double() if v.ndim == 4 else v for k, v in tensors.items()}
    changed = set()
    for given in ({}, *switches):
        model = case.model(case.folder, load_weight=False, **given).eval()
        model.load_state_dict(case.state)
        model.double()
        with torch.no_grad():
            alpha = model(batch, aux_input=prompt_name)
            text = model.encode_caption(None, 1)
        expected = expected_alpha(case, batch, text, prompt_name, {**DEFAULTS, **given})
        torch.testing.assert_close(
            alpha,
            expected,
            atol=1e-5,
            rtol=0,
            check_dtype=False,
            msg=lambda m, given=given: f"{given}: {m}",
        )
        if not given:
            base = alpha
        elif not torch.allclose(alpha, base, atol=1e-3):
            changed |= given.keys()
    # Where a switch made no difference, the comparison would prove little.
    masked = {"use_attention_mask", "use_attention_mask_list", "attn_mask_aux_input"}
    fixed = prompt_name in ("auto_mask", "trimap")
    expected_changes = {name for given in switches for name in given}
    assert changed >= expected_changes - (masked if fixed else set())
