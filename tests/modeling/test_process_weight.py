"""process_weight.py on tiny folders, in every layout of pretrained weights."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from golden_cases import GOLDEN
from models import ROUNDING
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from SDMatte.cli.common import run_command
from SDMatte.errors import CheckpointError, OutputError
from SDMatte.modeling import LiteSDMatte, SDMatte
from SDMatte.modeling.pretrained import process_pretrained, read_component_weights
from SDMatte.modeling.surgery import coordinate_weights
from SDMatte.modeling.unet import COORDINATE_SETTINGS

ADDED = COORDINATE_SETTINGS
NEW = [
    f"{kind}_embedding.linear_{i}.{part}"
    for kind in ("bbox", "point")
    for i in (1, 2)
    for part in ("weight", "bias")
]


def tiny_unet_config() -> dict:
    config = json.loads((GOLDEN / "pretrained_sdmatte" / "unet" / "config.json").read_text())
    return {
        **{k: v for k, v in config.items() if k not in ADDED},
        "block_out_channels": [32, 32, 32, 32],
        "attention_head_dim": [2, 2, 2, 2],
    }


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory) -> Path:
    """A folder like Stable Diffusion v2's, a few MB large."""
    folder = tmp_path_factory.mktemp("sd") / "stable-diffusion-2"
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(tiny_unet_config()).save_pretrained(folder / "unet")
    source = GOLDEN / "pretrained_sdmatte"
    AutoencoderKL.from_config(AutoencoderKL.load_config(source / "vae")).save_pretrained(
        folder / "vae"
    )
    text = CLIPTextConfig.from_pretrained(source / "text_encoder")
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    shutil.copytree(source / "tokenizer", folder / "tokenizer")
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def taesd(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "taesd"
    config = AutoencoderTiny.load_config(GOLDEN / "pretrained_litesdmatte" / "vae")
    AutoencoderTiny.from_config(config).save_pretrained(folder)
    return folder


def variant(source: Path, target: Path, layout: str) -> Path:
    """The same folder with the U-Net's weights in another layout."""
    shutil.copytree(source, target)
    unet = UNet2DConditionModel.from_pretrained(source / "unet")
    shutil.rmtree(target / "unet")
    options = {
        "safetensors": {},
        "bin": {"safe_serialization": False},
        "sharded": {"max_shard_size": "300KB"},
        "sharded bin": {"max_shard_size": "300KB", "safe_serialization": False},
        "fp16": {},
        "fp16 variant": {"variant": "fp16"},
        "sharded fp16 variant": {"variant": "fp16", "max_shard_size": "300KB"},
    }[layout]
    (unet.half() if "fp16" in layout else unet).save_pretrained(target / "unet", **options)
    return target


LAYOUTS = ["safetensors", "bin", "sharded", "sharded bin", "fp16", "fp16 variant"]


@pytest.mark.parametrize("layout", [*LAYOUTS, "sharded fp16 variant"])
def test_every_layout_is_processed_and_loads(stable_diffusion, tmp_path, layout):
    source = variant(stable_diffusion, tmp_path / "in", layout)
    if "sharded" in layout:
        assert len(list((source / "unet").glob("*-of-*"))) > 1
    output = process_pretrained(source, tmp_path / "out")

    config = json.loads((output / "unet" / "config.json").read_text())
    assert {k: config[k] for k in ADDED} == ADDED
    old, new = read_component_weights(source / "unet"), read_component_weights(output / "unet")
    assert sorted(new.keys() - old.keys()) == sorted(NEW)
    assert all(torch.equal(new[name], old[name]) for name in old)
    dtype = torch.float16 if "fp16" in layout else torch.float32
    assert {value.dtype for value in new.values()} == {dtype}
    for name in NEW:
        assert bool(new[name].any()) == (".linear_1." in name), name
    assert new["bbox_embedding.linear_1.weight"].shape == (128, 1280)
    assert new["point_embedding.linear_1.weight"].shape == (128, 1680)

    model = SDMatte(output, load_weight=True)
    torch.testing.assert_close(
        model.unet.conv_in.weight, old["conv_in.weight"].float().repeat(1, 2, 1, 1) / 2
    )
    torch.testing.assert_close(model.unet.aux_conv_in.weight[:32], old["conv_in.weight"].float())
    assert not model.unet.aux_conv_in.weight[32:].any()
    assert not model.unet.aux_conv_in.bias[32:].any()
    assert model.unet.config.cross_attention_dim == 1024


@pytest.mark.numerics
def test_widened_input_equals_the_original_on_equal_latents(stable_diffusion, tmp_path):
    output = process_pretrained(stable_diffusion, tmp_path / "out")
    original = UNet2DConditionModel.from_pretrained(stable_diffusion / "unet")
    latent = torch.randn(1, 4, 8, 8)
    model = SDMatte(output)
    torch.testing.assert_close(
        model.unet.conv_in(torch.cat([latent, latent], 1)),
        original.conv_in(latent),
        **ROUNDING,
    )


def test_lite_folder_gets_the_tiny_autoencoder(stable_diffusion, taesd, tmp_path):
    output = process_pretrained(stable_diffusion, tmp_path / "lite", vae=taesd)
    model = LiteSDMatte(output)
    expected = load_file(taesd / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(v, expected[n]) for n, v in model.vae.state_dict().items())
    assert process_pretrained(stable_diffusion, tmp_path / "lite", vae=taesd) == output


def test_init_zeros(stable_diffusion, tmp_path):
    output = process_pretrained(stable_diffusion, tmp_path / "out", init="zeros")
    new = read_component_weights(output / "unet")
    assert not any(new[name].any() for name in NEW)


def test_default_init_can_learn_and_zeros_cannot():
    """Why the default differs from the reference."""
    shapes = {"bbox_embedding.linear_1.weight": (8, 6), "bbox_embedding.linear_1.bias": (8,)}
    shapes |= {"bbox_embedding.linear_2.weight": (8, 8), "bbox_embedding.linear_2.bias": (8,)}
    shapes |= {n.replace("bbox", "point"): shape for n, shape in shapes.items()}
    for init, learns in (("default", True), ("zeros", False)):
        w = {n: v.requires_grad_() for n, v in coordinate_weights(shapes, init).items()}
        for _ in range(3):
            x = torch.nn.functional.silu(
                torch.ones(6) @ w["bbox_embedding.linear_1.weight"].T
                + w["bbox_embedding.linear_1.bias"]
            )
            y = x @ w["bbox_embedding.linear_2.weight"].T + w["bbox_embedding.linear_2.bias"]
            (y.sum() - 1).pow(2).backward()
            with torch.no_grad():
                for value in w.values():
                    if value.grad is not None:
                        value -= 0.01 * value.grad
                        value.grad = None
        assert bool(w["bbox_embedding.linear_2.weight"].any()) == learns


def test_rerun_is_a_no_op(stable_diffusion, tmp_path, caplog):
    caplog.set_level("INFO")
    output = process_pretrained(stable_diffusion, tmp_path / "out")
    file = output / "unet" / "diffusion_pytorch_model.safetensors"
    before = file.stat().st_mtime_ns
    caplog.clear()
    process_pretrained(stable_diffusion, tmp_path / "out")
    process_pretrained(output)  # in place
    assert file.stat().st_mtime_ns == before
    assert caplog.text.count("already processed; nothing to do") == 2
    with pytest.raises(CheckpointError, match="is not .* processed with --init"):
        process_pretrained(stable_diffusion, tmp_path / "out", init="zeros")


def test_in_place(stable_diffusion, tmp_path):
    folder = variant(stable_diffusion, tmp_path / "in", "sharded bin")
    assert process_pretrained(folder) == folder
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        p.name for p in stable_diffusion.iterdir()
    )
    SDMatte(folder)


def test_input_folders_are_not_written_to(stable_diffusion, taesd, tmp_path):
    source = shutil.copytree(stable_diffusion, tmp_path / "sd")
    (tmp_path / "link").symlink_to(source)
    shutil.copytree(taesd, tmp_path / "taesd")
    before = sorted(path for path in tmp_path.rglob("*"))
    for output in (source / "new", source / "unet", tmp_path / "link" / "deep" / "new"):
        with pytest.raises(OutputError, match="which is read: choose another output"):
            process_pretrained(source, output)
    with pytest.raises(OutputError, match="taesd, which is read"):
        process_pretrained(source, tmp_path / "taesd" / "new", vae=tmp_path / "taesd")
    shutil.rmtree(source / "vae")
    (source / "vae").symlink_to(tmp_path / "taesd")
    with pytest.raises(OutputError, match="must not be overwritten"):
        process_pretrained(source, vae=tmp_path / "taesd")
    assert {path for path in before if path.parent != source / "vae"} <= set(tmp_path.rglob("*"))
    assert not list(tmp_path.rglob("*new"))


def test_a_failure_leaves_nothing(stable_diffusion, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("SDMatte.modeling.weights.save_file", fail)
    folder = variant(stable_diffusion, tmp_path / "in", "safetensors")
    content = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for output in (tmp_path / "out", None):
        with pytest.raises(KeyboardInterrupt):
            process_pretrained(folder, output)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == content


def break_config(folder: Path, **changes) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(file: Path) -> None:
    """Truncate a file."""
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_damaged_output_is_not_called_ready(stable_diffusion, taesd, tmp_path, part):
    output = process_pretrained(stable_diffusion, tmp_path / "out")
    cut(output / f"{part}.safetensors")
    with pytest.raises(CheckpointError, match="choose another output folder, or remove it"):
        process_pretrained(stable_diffusion, output)
    with pytest.raises(CheckpointError, match=f"{part}.safetensors cannot be read"):
        process_pretrained(output)  # in place
    cut(Path(shutil.copytree(taesd, tmp_path / "taesd"), "diffusion_pytorch_model.safetensors"))
    with pytest.raises(CheckpointError, match="taesd/.* cannot be read as a checkpoint"):
        process_pretrained(stable_diffusion, tmp_path / "new", vae=tmp_path / "taesd")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file", "file is not a folder"),
        ("file/x", "file is not a folder"),
        pytest.param(
            "/proc/x/y",
            "Cannot write /proc/x/y: ",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
        ),
    ],
)
def test_unwritable_outputs_are_named(stable_diffusion, tmp_path, output, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=message):
        process_pretrained(stable_diffusion, tmp_path / output)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_errors_of_folders(stable_diffusion, taesd, tmp_path, monkeypatch):
    def broken(name: str) -> Path:
        shutil.copytree(stable_diffusion, tmp_path / name)
        return tmp_path / name

    cases = [(tmp_path / "nowhere", "Model folder .* not found")]
    folder = broken("no_unet")
    shutil.rmtree(folder / "unet")
    cases.append((folder, "it has no unet/"))
    folder = broken("sd15")
    break_config(folder, cross_attention_dim=768)
    cases.append((folder, "is Stable Diffusion 1.x"))
    folder = broken("no_weights")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    cases.append((folder, "has no weights"))
    folder = broken("cut")
    cut(folder / "unet" / "diffusion_pytorch_model.safetensors")
    cases.append((folder, "damaged, truncated"))
    for component, name in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        folder = broken(f"cut_{component}")
        cut(folder / component / f"{name}.safetensors")
        cases.append((folder, f"{component}/{name}.safetensors cannot be read as a checkpoint"))
    folder = broken("cut_bin")
    (folder / "text_encoder" / "model.safetensors").unlink()
    file = folder / "text_encoder" / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(5000)}, file)
    cut(file)
    cases.append((folder, "text_encoder/pytorch_model.bin cannot be read as a checkpoint"))
    folder = broken("deeper")
    break_config(folder, layers_per_block=2)
    cases.append((folder, "do not fit its config.json: .* missing"))
    folder = broken("wider")
    break_config(folder, out_channels=8)
    cases.append((folder, "do not fit its config.json: .* of another shape"))
    for number, changes in enumerate(
        (
            {"block_out_channels": "x"},
            {"block_out_channels": [-1]},
            {"down_block_types": ["NoBlock"] * 4},
            {"attention_head_dim": 0},
        )
    ):
        folder = broken(f"config_{number}")
        break_config(folder, **changes)
        cases.append((folder, "unet is not that of a U-Net"))
    folder = broken("no_json")
    (folder / "unet" / "config.json").write_text("{")
    cases.append((folder, "is not valid JSON"))
    for folder, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            process_pretrained(folder, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        with pytest.raises(CheckpointError):
            process_pretrained(folder)  # in place
    with pytest.raises(CheckpointError, match="is not a TAESD folder"):
        process_pretrained(stable_diffusion, tmp_path / "out", vae=stable_diffusion / "vae")
    with pytest.raises(CheckpointError, match="is both input and output"):
        process_pretrained(stable_diffusion, stable_diffusion)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="choose another output folder"):
        process_pretrained(stable_diffusion, tmp_path / "mine")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="GiB of disk"):
        process_pretrained(stable_diffusion, tmp_path / "out")


def test_command_line(stable_diffusion, tmp_path, capsys, monkeypatch):
    from argparse import Namespace

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    sys.modules.pop("process_weight", None)
    import process_weight

    args = Namespace(
        input=str(stable_diffusion),
        output=None,
        in_place=False,
        vae=None,
        init="default",
        config=None,
    )
    assert run_command(process_weight.main, args) == 2
    assert "error: Pass either --output FOLDER or --in-place" in capsys.readouterr().err
    args.output = tmp_path / "out"
    assert run_command(process_weight.main, args) == 0
    SDMatte(tmp_path / "out")
