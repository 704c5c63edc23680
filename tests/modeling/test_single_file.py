"""Stable Diffusion's original single file is converted to its folder in diffusers layout."""

import json
import shutil
import sys
import types

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from golden_cases import GOLDEN
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from SDMatte.errors import CheckpointError, MissingCheckpointError
from SDMatte.modeling import SDMatte
from SDMatte.modeling.pretrained import process_pretrained, read_component_weights

SOURCE = GOLDEN / "pretrained_sdmatte"
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
TEXT = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def replace(name: str, pairs: dict[str, str]) -> str:
    for new, old in pairs.items():
        name = name.replace(new, old)
    return name


def original_unet(tensors: dict, layers: int) -> dict:
    """The U-Net's tensors under their original names, with blocks in two flat lists."""
    named = DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"]
    renamed = {}
    for name, value in tensors.items():
        section, *rest = name.split(".")
        if name in named:
            renamed[named[name]] = value
            continue
        if section == "mid_block":
            kind, index, *tail = rest
            place = f"middle_block.{2 * int(index) if kind == 'resnets' else 1}"
        else:
            block, kind, index, *tail = rest
            place = "input_blocks" if section == "down_blocks" else "output_blocks"
            first = int(block) * (layers + 1)
            if kind == "downsamplers":
                renamed[f"{place}.{first + layers + 1}.0.op.{tail[-1]}"] = value
                continue
            if kind == "upsamplers":
                attended = any(f"up_blocks.{block}.attentions" in n for n in tensors)
                renamed[f"{place}.{first + layers}.{1 + attended}.conv.{tail[-1]}"] = value
                continue
            number = first + int(index) + (section == "down_blocks")
            place = f"{place}.{number}.{int(kind == 'attentions')}"
        tail = ".".join(tail)
        renamed[f"{place}.{replace(tail, RESNET) if kind == 'resnets' else tail}"] = value
    return {f"model.diffusion_model.{name}": value for name, value in renamed.items()}


def original_vae(tensors: dict, blocks: int) -> dict:
    named = DIFFUSERS_TO_LDM_MAPPING["vae"]
    attention = {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }
    renamed = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if name in named:
            renamed[named[name]] = value
        elif parts[1] == "mid_block" and parts[2] == "attentions":
            tail = replace(".".join(parts[4:]), attention)
            is_matrix = tail.endswith("weight") and not tail.startswith("norm")
            value = value[..., None, None] if is_matrix else value  # originally a 1x1 convolution
            renamed[f"{parts[0]}.mid.attn_1.{tail}"] = value
        elif parts[1] == "mid_block":
            tail = ".".join(parts[4:])
            renamed[f"{parts[0]}.mid.block_{int(parts[3]) + 1}.{tail}"] = value
        else:
            down = parts[1] == "down_blocks"
            block = int(parts[2]) if down else blocks - 1 - int(parts[2])
            place = f"{parts[0]}.{'down' if down else 'up'}.{block}"
            if parts[3] == "resnets":
                tail = ".".join(parts[5:]).replace("conv_shortcut", "nin_shortcut")
                renamed[f"{place}.block.{parts[4]}.{tail}"] = value
            else:
                renamed[f"{place}.{parts[3].removesuffix('rs')}.conv.{parts[-1]}"] = value
    return {f"first_stage_model.{name}": value for name, value in renamed.items()}


def original_text_encoder(tensors: dict) -> dict:
    named = DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"]
    renamed = {"text_projection": torch.zeros(1024, 1024), "logit_scale": torch.zeros(())}
    for name, value in tensors.items():
        name = name.removeprefix("text_model.")
        if f"text_model.{name}" in named:
            renamed[named[f"text_model.{name}"]] = value
            continue
        old = replace(name, TEXT)
        for part in ("q_proj", "k_proj", "v_proj"):  # originally one matrix
            if part in old:
                whole = old.replace(f".{part}.", ".in_proj_")
                renamed.setdefault(whole, {})[part] = value
                break
        else:
            renamed[old] = value
    for name, value in renamed.items():
        if isinstance(value, dict):
            renamed[name] = torch.cat([value[part] for part in ("q_proj", "k_proj", "v_proj")])
    return {f"cond_stage_model.model.{name}": value for name, value in renamed.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights in diffusers layout."""
    folder = tmp_path_factory.mktemp("sd") / "folder"
    torch.manual_seed(0)
    config = json.loads((SOURCE / "unet" / "config.json").read_text())
    unet = UNet2DConditionModel.from_config({**config, "block_out_channels": [32] * 4})
    unet.save_pretrained(folder / "unet")
    AutoencoderKL.from_config(AutoencoderKL.load_config(SOURCE / "vae")).save_pretrained(
        folder / "vae"
    )
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(SOURCE / "text_encoder"))
    text.save_pretrained(folder / "text_encoder")
    shutil.copytree(SOURCE / "tokenizer", folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def original(folder) -> dict[str, torch.Tensor]:
    """The same weights in the original format, with a moving average."""
    text = load_file(folder / "text_encoder" / "model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    return {
        **original_unet(read_component_weights(folder / "unet"), layers=1),
        **original_vae(vae, blocks=4),
        **original_text_encoder(text),
        "betas": torch.linspace(0, 1, 10),
        "model_ema.decay": torch.tensor(0.5),
    }


@pytest.fixture
def configs(folder, tmp_path):
    """Only the configs and the tokenizer."""
    shutil.copytree(folder, tmp_path / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "configs"


def assert_same_model(one, other):
    one, other = SDMatte(one).state_dict(), SDMatte(other).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())  # a copy


class ModelCheckpoint:
    """Stands for the class of Lightning, and records whether it is unpickled."""

    loaded = []

    def __setstate__(self, state):
        self.loaded.append(state)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_single_file_equals_the_folder(original, folder, configs, tmp_path, suffix, monkeypatch):
    file = tmp_path / f"768-v-ema.{suffix}"
    if suffix == "ckpt":  # as Lightning writes it, with objects beside the state dict
        name = "pytorch_lightning.callbacks.model_checkpoint"
        monkeypatch.setattr(ModelCheckpoint, "__module__", name)
        module = types.ModuleType(name)
        module.ModelCheckpoint = ModelCheckpoint
        for index in range(name.count(".") + 1):
            parent = name.rsplit(".", index)[0]
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)
        callback = ModelCheckpoint()
        callback.best_score = 3
        content = {"callbacks": {ModelCheckpoint: {"object": callback}}, "global_step": 7}
        torch.save({"state_dict": original, **content}, file)
        monkeypatch.delitem(sys.modules, name)
    else:
        save_file(original, file)
    output = process_pretrained(file, tmp_path / "out", config=configs)
    assert_same_model(output, process_pretrained(folder, tmp_path / "expected"))
    assert not ModelCheckpoint.loaded


def test_configs_beside_the_file_are_used(original, configs, tmp_path, caplog):
    save_file(original, configs / "v2.safetensors")
    output = process_pretrained(configs / "v2.safetensors", tmp_path / "out")
    SDMatte(output)
    caplog.set_level("INFO")
    process_pretrained(configs / "v2.safetensors", output)
    assert "nothing to do" in caplog.text


def without(tensors, *prefixes):
    return {n: v for n, v in tensors.items() if not n.startswith(prefixes)}


def test_errors_of_files(original, configs, folder, tmp_path, monkeypatch):
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    narrow = {**original, key: original[key][:, :768].contiguous()}
    cases = [
        (narrow, "is Stable Diffusion 1.x"),
        (without(original, "model.diffusion_model."), "must be Stable Diffusion v2 in its orig"),
        (without(original, "first_stage_model."), "vae in .* does not fit"),
        (without(original, "cond_stage_model."), "text_encoder in .* does not fit"),
        (without(original, "model.diffusion_model.out."), "do not fit its config.json: .* missing"),
    ]
    for index, (tensors, message) in enumerate(cases):
        file = tmp_path / f"{index}.safetensors"
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=message):
            process_pretrained(file, tmp_path / "out", config=configs)
    with pytest.raises(CheckpointError, match="is not a local folder"):
        process_pretrained(file)
    shutil.rmtree(configs / "tokenizer")
    with pytest.raises(CheckpointError, match="has no tokenizer/: name another"):
        process_pretrained(file, tmp_path / "out", config=configs)
    with pytest.raises(MissingCheckpointError, match="name one with --config"):
        process_pretrained(file, tmp_path / "out", config=str(tmp_path / "none"))
    assert not (tmp_path / "out").exists()


class Harmful:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_only_tensors_are_unpickled(original, configs, tmp_path, capsys):
    file = tmp_path / "bad.ckpt"
    torch.save({"state_dict": original, "numpy": Harmful()}, file)
    with pytest.raises(CheckpointError, match="contains more than tensors"):
        process_pretrained(file, tmp_path / "out", config=configs)
    assert "unpickled" not in capsys.readouterr().out
