"""Properties of the models beyond the reference's numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from golden_cases import GOLDEN, filled_state_dict
from models import ROUNDING, SMALL, make_batch, tiny_folder, tiny_model
from safetensors.torch import load_file, save_file

from SDMatte.errors import CheckpointError, ConfigError, DataError, PromptError
from SDMatte.modeling import LiteSDMatte, SDMatte, weights


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@torch.no_grad()
def run(model, batch, **kwargs):
    return model(batch, **kwargs)


def test_alpha_is_in_range_for_every_prompt(model):
    batch = make_batch()
    seen = []
    for name in ("point_mask", "bbox_mask", "mask", "auto_mask", "trimap"):
        alpha = run(model, batch, aux_input=name)
        assert alpha.shape == (2, 1, 64, 64) and alpha.min() >= 0 and alpha.max() <= 1
        seen.append(alpha)
    assert not torch.allclose(seen[0], seen[1], **ROUNDING)


def test_sizes_must_be_multiples_of_the_divisor(model):
    assert run(model, make_batch(1, 64, 160)).shape == (1, 1, 64, 160)
    with pytest.raises(DataError, match="100x64; width and height must be multiples of 32"):
        run(model, make_batch(1, 64, 100))


@pytest.mark.numerics
def test_images_of_a_batch_are_independent(model):
    batch = make_batch(2)
    batch["bbox_mask"][1] = -1
    batch["bbox_mask"][1, :, 5:9, 5:60] = 1
    both = run(model, batch)
    for i in range(2):
        one = {k: v[i : i + 1] for k, v in batch.items()}
        torch.testing.assert_close(run(model, one), both[i : i + 1], **ROUNDING)


@pytest.mark.numerics
def test_keep_all_mask_equals_no_mask(model):
    batch = make_batch()
    batch["bbox_mask"] = torch.ones_like(batch["bbox_mask"])
    unmasked = tiny_model(use_attention_mask=False)
    torch.testing.assert_close(run(model, batch), run(unmasked, batch), **ROUNDING)
    batch = make_batch()
    assert not torch.allclose(run(model, batch), run(unmasked, batch), **ROUNDING)


def test_opacity_coordinates_and_caption_matter(model):
    batch = make_batch()
    base = run(model, batch)
    for change in (
        {"is_trans": 1 - batch["is_trans"]},
        {"bbox_coords": 1 - batch["bbox_coords"]},
        {"caption": ["a cat", ""]},
    ):
        assert not torch.allclose(run(model, {**batch, **change}), base, **ROUNDING), change


def test_opacity_can_be_switched_off():
    batch = make_batch()
    without = tiny_model(use_opacity_input=False)
    opaque = {"is_trans": torch.zeros(2, dtype=torch.long)}
    torch.testing.assert_close(
        run(without, batch), run(tiny_model(), {**batch, **opaque}), **ROUNDING
    )


def test_missing_opacity_and_caption_mean_opaque_and_empty(model):
    batch = make_batch()
    batch["is_trans"] = torch.zeros(2, dtype=torch.long)
    bare = {k: v for k, v in batch.items() if k not in ("is_trans", "caption")}
    torch.testing.assert_close(run(model, batch), run(model, bare), **ROUNDING)


def test_prompt_is_drawn_in_training_and_points_in_evaluation():
    model = tiny_model(aux_input=None, aux_input_list=["mask", "bbox_mask", "mask", "mask"])
    assert model.choose_prompt().mask_key == "point_mask"
    model.train()
    random = np.random.default_rng(0)
    drawn = [model.choose_prompt(generator=random).mask_key for _ in range(2000)]
    assert set(drawn) == {"mask", "bbox_mask"}
    assert drawn.count("mask") / 2000 == pytest.approx(0.75, abs=0.04)
    assert model.choose_prompt("trimap").mask_key == "trimap"


def test_frozen_parts_get_no_gradient_and_stay_in_evaluation_mode():
    model = tiny_model(aux_input="point_mask").train()
    model(make_batch()).mean().backward()
    assert not model.vae.training and not model.text_encoder.training
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("unet."), name
        unused = name.startswith("unet.bbox_embedding")
        assert (parameter.grad is not None) == (parameter.requires_grad and not unused), name


@pytest.mark.numerics
def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(make_batch()).mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        # Relative to the largest value; gradients that are 0 up to rounding have none.
        atol = 1e-3 * gradient.abs().max().item() + 1e-7
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=atol, msg=name)


@pytest.mark.numerics
@pytest.mark.parametrize("prompt", ["bbox_mask", "point_mask"])
def test_bfloat16_and_autocast_stay_near_float32(model, prompt):
    batch = make_batch()
    exact = run(model, batch, aux_input=prompt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(model, batch, aux_input=prompt)
    low = run(tiny_model().to(torch.bfloat16), batch, aux_input=prompt)
    for alpha in (mixed, low):
        assert alpha.dtype == torch.float32
        assert (alpha - exact).abs().mean() < 0.03


def test_features_are_returned_and_not_kept(model):
    alpha, features = run(model, make_batch(), return_features=True)
    assert [list(f.shape) for f in features] == [[2, 32, 2, 2], [2, 32, 2, 2], [2, 32, 16, 16]]
    torch.testing.assert_close(alpha, run(model, make_batch()), **ROUNDING)
    assert not any(module._forward_hooks for module in model.modules())


def test_empty_caption_is_encoded_once_and_again_after_a_change(model, monkeypatch):
    calls = []
    original = SDMatte._run_text_encoder
    monkeypatch.setattr(
        SDMatte, "_run_text_encoder", lambda self, c: calls.append(c) or original(self, c)
    )
    model = tiny_model()
    first = model.encode_caption(None, 2)
    assert torch.equal(model.encode_caption(["", ""], 2), first) and len(calls) == 1
    with torch.no_grad():
        next(model.text_encoder.parameters()).add_(1)
    assert not torch.equal(model.encode_caption(None, 2), first) and len(calls) == 2
    with pytest.raises(DataError, match="1 captions for 2 images"):
        model.encode_caption(["a"], 2)


def test_save_and_load_is_identity(tmp_path, model):
    model.save_pretrained(tmp_path / "saved")
    modes = {path.stat().st_mode for path in (tmp_path / "saved").iterdir() if path.is_file()}
    assert len(modes) == 1  # weights can be read by all who can read the rest
    loaded = SDMatte.from_pretrained(tmp_path / "saved")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert loaded.settings == model.settings
    torch.testing.assert_close(run(loaded, make_batch()), run(model, make_batch()), **ROUNDING)
    assert not loaded.training and not loaded.vae.encoder.conv_in.weight.requires_grad
    half = SDMatte.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.vae.parameters()} == {torch.float32}  # it is narrow
    assert torch.isfinite(run(half, make_batch())).all()
    with pytest.raises(CheckpointError, match="holds a SDMatte, not a LiteSDMatte"):
        LiteSDMatte.from_pretrained(tmp_path / "saved")


def test_published_layout_loads_with_the_checkpoint_beside_the_configs(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    for path in (GOLDEN / "pretrained_sdmatte").iterdir():
        (folder / path.name).symlink_to(path)
    tensors = filled_state_dict("sdmatte", 3)
    torch.save({"model": tensors}, folder / "SDMatte.pth")
    model = SDMatte.from_pretrained(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[name]), name
    with pytest.raises(CheckpointError, match="no checkpoint named SDMatte_plus.pth"):
        SDMatte.from_pretrained(folder, checkpoint="SDMatte_plus.pth")


@pytest.mark.parametrize("kind", ["safetensors", "pth", "old pth"])
@pytest.mark.parametrize("part_size", [2**14, 2**40])
def test_a_checkpoint_is_converted_to_the_types_of_the_model(tmp_path, model, kind, part_size):
    half = {name: value.bfloat16() for name, value in model.state_dict().items()}
    kept = "unet.conv_in.weight"
    half[kept] = model.state_dict()[kept]  # already of the model's type
    path = tmp_path / f"half.{kind.split()[-1]}"
    if kind == "safetensors":
        save_file(half, path)
    else:
        torch.save({"model": half}, path, _use_new_zipfile_serialization=kind == "pth")
    with init_empty_weights(include_buffers=False):
        other = SDMatte(tiny_folder(), load_weight=False)
    weights.assign_checkpoint(other, path, part_size)
    for name, value in other.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, half[name].float()), name
    text = {v.untyped_storage().data_ptr() for v in other.text_encoder.state_dict().values()}
    assert len(text) == 1  # freed as a whole
    other.save_pretrained(tmp_path / "again")


@pytest.mark.slow
def test_converting_a_large_checkpoint_needs_only_the_memory_of_the_model(tmp_path):
    tensors = {str(i): torch.ones(2**20) for i in range(160)}  # 1 GiB with the next line
    tensors |= {f"text_encoder.text_model.{i}": torch.ones(2**20) for i in range(96)}
    save_file(tensors, tmp_path / "large.safetensors")
    script = (
        "import sys, torch; from SDMatte.modeling import weights\n"
        "from SDMatte.runtime.devices import peak_memory\n"
        "model = torch.nn.Module()\n"
        "model.text_encoder = torch.nn.Module()\n"
        "model.text_encoder.text_model = torch.nn.Module()\n"
        "for part, count in ((model, 160), (model.text_encoder.text_model, 96)):\n"
        "    for i in range(count): part.register_parameter(str(i), torch.nn.Parameter(\n"
        "        torch.empty(2**20, dtype=torch.bfloat16, device='meta')))\n"
        "before = peak_memory(torch.device('cpu'))\n"
        "weights.assign_checkpoint(model, sys.argv[1], 2**26)\n"
        "print(peak_memory(torch.device('cpu')) - before)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "large.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < 0.8  # GiB; the file and its copy would be 1.5


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("spelling", ["published", "transformers 5", "with position ids"])
def test_checkpoints_load_in_every_spelling(tmp_path, model, suffix, spelling):
    tensors = dict(model.state_dict())
    if spelling == "transformers 5":
        weights.rename_text_encoder(tensors, with_level=False)
        assert not any(".text_model." in name for name in tensors)
    elif spelling == "with position ids":
        tensors["text_encoder.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    path = tmp_path / f"model{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    other = tiny_model(seed=5)
    weights.load_checkpoint(other, path)
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_load_state_dict_accepts_both_spellings_and_is_strict(model):
    tensors = dict(model.state_dict())
    other = tiny_model(seed=5)
    other.load_state_dict(tensors)
    weights.rename_text_encoder(tensors, with_level=False)
    other.load_state_dict(tensors)
    del tensors["unet.conv_out.bias"]
    with pytest.raises(RuntimeError, match=r"unet\.conv_out\.bias"):
        other.load_state_dict(tensors)


def test_errors_of_checkpoints(tmp_path, model):
    good = tmp_path / "good.pth"
    torch.save(model.state_dict(), good)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    cases = {
        "missing.pth": (None, "Checkpoint file .* not found"),
        "cut.pth": (good.read_bytes()[:100_000], "cannot be read as a checkpoint"),
        "empty.pth": (b"", "cannot be read as a checkpoint"),
        "text.pth": (b"hello, this is a text file", "contains more than tensors|cannot be read"),
        "cut.safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cannot be read"),
        "evil.pth": (Evil(), "contains more than tensors"),
        "list.pth": ([torch.zeros(1)], "holds no state dict"),
        "numbers.pth": ({"a": 1}, "a are not tensors"),
        "lite.pth": (
            {"unet.aux_conv_in.weight": torch.zeros(1), "vae.encoder.layers.0.x": torch.zeros(1)},
            "is a LiteSDMatte checkpoint and does not fit this SDMatte",
        ),
        "sd.pth": ({"model.diffusion_model.x": torch.zeros(1)}, "original one-file format"),
        "missing_key.pth": (
            {k: v for k, v in model.state_dict().items() if k != "unet.conv_out.bias"},
            r"1 missing \(unet\.conv_out\.bias\)",
        ),
        "shape.pth": (
            {**model.state_dict(), "unet.conv_out.bias": torch.zeros(7)},
            r"unet\.conv_out\.bias is \[7\], not \[8\]",
        ),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=message) as caught:
            weights.load_checkpoint(model, path)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), name
    assert not (tmp_path / "executed").exists()


def test_errors_of_settings():
    for settings, message in (
        ({"use_aux_input": False}, "use_aux_input must be True; got False"),
        ({"conv_scale": 2}, "conv_scale must be 3; got 2"),
        ({"aux_input": "boxes"}, "aux_input must be one of point_mask, .*; got 'boxes'"),
        ({"aux_input_list": ["box"]}, "aux_input_list.* must be one of .*; got 'box'"),
        ({"aux_input_list": "mask"}, "aux_input_list must be a list; got 'mask'"),
        ({"aux_input_list": []}, "aux_input_list must have at least 1 item"),
        ({"attn_mask_aux_input": None}, "attn_mask_aux_input must be a list; got None"),
        ({"use_coor_input": "no"}, "use_coor_input must be True or False; got 'no'"),
        ({"residual_connection": 0}, "residual_connection must be True or False; got 0"),
        ({"use_attention_mask_list": [True]}, "use_attention_mask_list.1 is missing"),
        ({"use_attention_mask_list": 3}, "must be a list; got 3"),
        ({"use_encoder_hidden_states_list": [True, "no", True]}, "must be True or False; got 'no'"),
        ({"attention_mask_mode": "soft"}, "attention_mask_mode must be 'bias', 'binary' or 'log'"),
        ({"color": 1}, "Unknown setting color"),
        ({"load_weight": ["unet2"]}, "load_weight must be True, False or a list of"),
        ({"dtype": "float8"}, "dtype must be float32"),
    ):
        with pytest.raises(ConfigError, match=message):
            SDMatte(SMALL, **{"load_weight": False, **settings})


def test_settings_without_effect_are_accepted_with_a_warning(caplog):
    SDMatte(SMALL, load_weight=False, add_noise=True, num_inference_steps=1, use_dis_loss=False)
    assert "add_noise=True has no effect" in caplog.text
    assert "num_inference_steps=1 has no effect" in caplog.text
    assert "use_dis_loss" not in caplog.text


def test_errors_of_batches(model):
    batch = make_batch()
    with pytest.raises(PromptError, match="needs mask_coords in the batch"):
        run(model, {k: v for k, v in batch.items() if k != "mask_coords"}, aux_input="mask")
    with pytest.raises(PromptError, match="Unknown prompt 'box'"):
        run(model, batch, aux_input="box")
    with pytest.raises(DataError, match=r"bbox_mask is \[2, 1, 32, 64\]"):
        run(model, {**batch, "bbox_mask": batch["bbox_mask"][..., ::2, :]})


def test_errors_of_pretrained_folders(tmp_path):
    with pytest.raises(CheckpointError, match="Model folder .* not found"):
        SDMatte(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has no unet/config.json"):
        SDMatte(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="holds an AutoencoderKL.*needs an AutoencoderTiny"):
        LiteSDMatte(GOLDEN / "pretrained_sdmatte", load_weight=False)
    with pytest.raises(CheckpointError, match="has no weights in unet"):
        SDMatte(GOLDEN / "pretrained_sdmatte", load_weight=True)


def test_shipped_autoencoder_loads_by_name():
    model = SDMatte(SMALL, load_weight=["vae"])
    shipped = load_file(SMALL / "vae" / "diffusion_pytorch_model.safetensors")
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, shipped[name].float()), name
    config = json.loads((SMALL / "vae" / "config.json").read_text())
    assert model.vae.config.scaling_factor == config["scaling_factor"]
