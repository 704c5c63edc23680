"""Full-size models have the names and shapes of the published checkpoints."""

import json
import shutil

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from golden_cases import GOLDEN
from transformers import CLIPTextConfig, CLIPTextModel

from SDMatte.modeling import LiteSDMatte, SDMatte
from SDMatte.modeling.unet import COORDINATE_SETTINGS

UNET = {
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "sample_size": 96,
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 768,
}
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "vocab_size": 49408,
    "hidden_act": "gelu",
}
MODELS = {
    "SDMatte": (SDMatte, UNET, AutoencoderKL, VAE, 865_910_724),
    "LiteSDMatte": (LiteSDMatte, {**UNET, "layers_per_block": 1}, AutoencoderTiny, {}, None),
}


@pytest.mark.parametrize("name", MODELS)
def test_names_shapes_and_sizes(tmp_path, name):
    cls, unet_config, vae_class, vae_config, unet_size = MODELS[name]
    for part, config in (
        ("unet", {**unet_config, **COORDINATE_SETTINGS}),
        ("vae", {**vae_config, "_class_name": vae_class.__name__}),
        ("text_encoder", TEXT),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    shutil.copytree(GOLDEN / "pretrained_sdmatte" / "tokenizer", tmp_path / "tokenizer")

    with init_empty_weights():
        model = cls(tmp_path, load_weight=False)
        unet = UNet2DConditionModel.from_config(unet_config)
        vae = vae_class.from_config(vae_config)
        text = CLIPTextModel(CLIPTextConfig(**TEXT))
    shapes = {n: tuple(v.shape) for n, v in model.state_dict().items()}

    expected = {f"unet.{n}": tuple(v.shape) for n, v in unet.state_dict().items()}
    if unet_size is not None:  # as documented for Stable Diffusion v2
        assert sum(p.numel() for p in unet.parameters()) == unet_size
    expected |= {f"vae.{n}": tuple(v.shape) for n, v in vae.state_dict().items()}
    for n, v in text.state_dict().items():
        expected[f"text_encoder.text_model.{n.removeprefix('text_model.')}"] = tuple(v.shape)
    for kind, width in (("bbox", 1280), ("point", 1680)):
        for layer, inputs in ((1, width), (2, 1280)):
            expected[f"unet.{kind}_embedding.linear_{layer}.weight"] = (1280, inputs)
            expected[f"unet.{kind}_embedding.linear_{layer}.bias"] = (1280,)
    expected["unet.conv_in.weight"] = (320, 8, 3, 3)
    expected["unet.aux_conv_in.weight"] = (1024, 4, 3, 3)
    expected["unet.aux_conv_in.bias"] = (1024,)
    assert shapes == expected
    assert model.unet.config.cross_attention_dim == 1024
    assert model.size_divisor == 64
    assert not any(p.requires_grad for p in model.vae.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())
