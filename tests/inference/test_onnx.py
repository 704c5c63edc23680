"""Models exported to ONNX: the same mattes and errors as with torch, and none of its imports."""

import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from models import SMALL, tiny_folder
from skimage import data

from SDMatte import MattePredictor
from SDMatte.cli.main import main
from SDMatte.errors import CheckpointError, ConfigError, DataError, PromptError
from SDMatte.inference import onnx
from SDMatte.inference.export import TOLERANCES
from SDMatte.modeling import LiteSDMatte, SDMatte

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="ONNX: pip install -r requirements-dev.txt")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # an export takes a minute or more

BOX = (9, 7, 72, 63)
HEAVY = ("torch", "diffusers", "transformers", "timm", "accelerate", "omegaconf")


def mask_of(rgb):
    mask = np.zeros(rgb.shape[:2], np.uint8)
    mask[10:50, 20:60] = 255
    return mask


def assert_same_mattes(exported, model, rgb, tolerance=1e-4, **settings):
    """Compare all prompts, one and several at a time."""
    predictors = [
        MattePredictor(model, **settings),
        MattePredictor(exported, prompts=MattePredictor(model, resolution=64).prompts, **settings),
    ]
    mask = mask_of(rgb)
    trimap = np.where(mask > 0, 255, np.roll(mask, 5) // 255 * 128).astype(np.uint8)
    prompts = (
        {},
        {"box": BOX, "transparent": True},
        {"box": [BOX, (0, 0, 30, 30), (5, 1, 80, 60)]},
        {"points": [(30, 30), (50, 40)]},
        {"mask": mask},
        {"trimap": trimap},
    )
    for prompt in prompts:
        expected, found = (p.predict(**prompt, image=p.encode(rgb)) for p in predictors)
        if not isinstance(found, list):
            expected, found = [expected], [found]
        assert len(found) == len(expected)
        for one, other in zip(expected, found, strict=True):
            assert one.prompt == other.prompt and other.alpha.dtype == np.float32
            np.testing.assert_allclose(other.alpha, one.alpha, rtol=0, atol=tolerance)


def small_folder(folder, lite=False, levels=2):
    """Configs with the last levels of the tiny model and few layers, whose export is faster."""
    shutil.copytree(tiny_folder(), folder)
    paths = [folder / name / "config.json" for name in ("unet", "vae")]
    unet, vae = (json.loads(path.read_text()) for path in paths)
    for name in ("block_out_channels", "attention_head_dim", "down_block_types"):
        unet[name] = unet[name][:levels]
    unet["up_block_types"] = unet["up_block_types"][-levels:]
    unet["layers_per_block"] = 1
    if lite:
        vae = {
            "_class_name": "AutoencoderTiny",
            "latent_channels": vae["latent_channels"],
            "encoder_block_out_channels": [8] * levels,
            "decoder_block_out_channels": [8] * levels,
            "num_encoder_blocks": [1] * levels,
            "num_decoder_blocks": [1] * levels,
            "scaling_factor": 1.0,
        }
    else:
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            vae[name] = vae[name][:levels]
    for path, config in zip(paths, (unet, vae), strict=True):
        path.write_text(json.dumps(config))
    return folder


def small_model(folder, cls=SDMatte, **settings):
    """A model with random weights whose mattes are not constant."""
    torch.manual_seed(0)
    model = cls(folder, load_weight=False, aux_input=None, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = small_folder(tmp_path_factory.mktemp("model") / "configs", lite=True)
    return small_model(folder, LiteSDMatte)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "small"
    model.save_pretrained(folder, inference={"resolution": 64, "crop_margin": 0.5})
    return folder


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    """The model, exported by the command; takes the most time of these tests."""
    folder = tmp_path_factory.mktemp("exported") / "sub" / "small"
    assert main(["export", str(saved), str(folder)]) == 0
    return folder


def test_exported_models_give_the_same_mattes(exported, model, rgb):
    predictor = MattePredictor.from_pretrained(exported, device="cpu")
    network = predictor.model
    assert (predictor.resolution, predictor.crop_margin) == (64, 0.5)
    assert predictor.prompts == ("point", "box", "mask", "auto", "trimap")
    assert network.size_divisor == model.size_divisor
    assert_same_mattes(network, model, rgb, resolution=64)
    assert_same_mattes(network, model, rgb, resolution=96, keep_aspect=True, crop_margin=0.1)


def test_openvino(exported, model, rgb):
    import onnxruntime

    if "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-openvino is not installed")
    network = MattePredictor.from_pretrained(exported, device="openvino").model
    assert_same_mattes(network, model, rgb, resolution=64)


def test_openvino_needs_an_exported_model():
    with pytest.raises(ConfigError, match="device=openvino needs a model exported by `sdmatte ex"):
        MattePredictor.from_pretrained(device="openvino")


@pytest.mark.parametrize("refine", ["guided", "tiles"])
def test_options_of_exported_models(exported, model, rgb, refine):
    image = np.kron(rgb[:30, :40], np.ones((5, 5, 1), np.uint8))
    prompts = [{"box": (20, 20, 120, 80)}, {"points": [(30, 30)], "transparent": True}]
    predictors = [
        MattePredictor(model, resolution=64, crop_margin=0.5),
        MattePredictor.from_pretrained(exported),
    ]
    found = [p.predict_batch([image, image], prompts, refine=refine) for p in predictors]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other.alpha, one.alpha, rtol=0, atol=5e-4)  # of two passes
        np.testing.assert_allclose(other.cutout(), one.cutout(), rtol=0, atol=1)


def test_the_same_errors(exported, rgb):
    predictor = MattePredictor.from_pretrained(exported)
    with pytest.raises(PromptError, match="call set_image first"):
        predictor.predict(box=BOX)
    with pytest.raises(DataError, match="the file does not exist"):
        predictor.set_image("nowhere.png")
    predictor.set_image(rgb)
    with pytest.raises(PromptError, match=r"The point \(95, 3\) is not in the image"):
        predictor.predict(points=[(95, 3)])
    with pytest.raises(ConfigError, match="resolution must be a positive multiple of 4; got 102"):
        MattePredictor.from_pretrained(exported, resolution=102)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on memory")
def test_out_of_memory(exported):
    script = f"""
        import resource
        import numpy as np
        from pathlib import Path
        from SDMatte import MattePredictor
        from SDMatte.errors import ConfigError

        predictor = MattePredictor.from_pretrained({str(exported)!r}, resolution=2048)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        try:
            predictor.encode(np.zeros((8, 8, 3), np.uint8)).encoding
        except ConfigError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.stdout.startswith(
        "Out of memory on cpu at a resolution of 2048x2048 and a batch of 1: lower resolution"
    ), done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"checkpoint": "a.pth"}, "is an exported model: checkpoint does not apply to it"),
        ({"offload": True}, "offload does not apply to it"),
        ({"dtype": "bfloat16"}, "was exported in float32: export the model with --dtype bfloat16"),
        ({"device": "tpu"}, "device=tpu is not available: this onnxruntime has .*CPU"),
    ],
)
def test_incompatible_arguments(exported, arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        MattePredictor.from_pretrained(exported, **arguments)
    assert MattePredictor.from_pretrained(exported, dtype=torch.float32, device="cpu")


def test_damaged_folders(exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    card = json.loads((folder / onnx.MODEL_CARD).read_text())
    (folder / onnx.DECODER).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"decoder.onnx cannot be loaded: [^\n]+$"):
        MattePredictor.from_pretrained(folder)
    (folder / onnx.DECODER).unlink()
    with pytest.raises(CheckpointError, match=r"decoder.onnx not found: export the model again"):
        MattePredictor.from_pretrained(folder)
    card["onnx"]["size_divisor"] = "32"
    (folder / onnx.MODEL_CARD).write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="onnx.size_divisor must be an integer; got '32'"):
        MattePredictor.from_pretrained(folder)


def test_no_torch_is_needed(exported, saved, rgb, tmp_path):
    np.save(tmp_path / "rgb.npy", rgb)
    script = f"""
        import sys
        import numpy as np
        from SDMatte import MattePredictor
        from SDMatte.cli.main import main
        from SDMatte.errors import DependencyError
        from SDMatte.images.io import write_image

        def load(folder):
            try:
                return MattePredictor.from_pretrained(folder)
            except DependencyError as error:
                print(error)

        sys.modules["onnxruntime"] = None  # as if it were not installed
        load({str(exported)!r})
        del sys.modules["onnxruntime"]
        rgb = np.load({str(tmp_path / "rgb.npy")!r})
        predictor = load({str(exported)!r})
        result = predictor.predict(box={BOX}, image=predictor.encode(rgb))
        result.cutout()
        path = write_image({str(tmp_path / "a.png")!r}, rgb)
        options = ["--box", *map(str, {BOX}), "--model", {str(exported)!r}, "--alpha-only"]
        assert main(["matte", str(path), *options]) == 0
        print(sorted(set({HEAVY}) & set(sys.modules)))
        sys.modules["torch"] = None
        load({str(saved)!r})
        options = ["--auto", "--model", {str(exported)!r}, "--num-processes", "2"]
        assert main(["matte", str(path), *options, "-o", {str(tmp_path / "b.png")!r}]) == 2
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "Exported models need onnxruntime, which is not installed: "
        "pip install -r requirements-onnx.txt."
    )
    assert lines[2] == "[]"
    assert "other models need torch, which is not installed" in lines[3]
    assert done.stderr.splitlines()[-1] == (
        "error: This needs torch, which is not installed: pip install -r requirements.txt."
    )
    assert (tmp_path / "a_matte.png").is_file() and not (tmp_path / "b.png").exists()


def test_refused_exports(saved, exported, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output, sentence in (
        (exported, "is not empty: choose another output"),
        (saved, "is read by this command and must not be overwritten"),
        (tmp_path / "file", "file is not a folder"),
    ):
        before = sorted(output.iterdir()) if output.is_dir() else None
        assert main(["export", str(saved), str(output)]) == 2
        assert sentence in capsys.readouterr().err
        assert before is None or sorted(output.iterdir()) == before
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "none" in capsys.readouterr().err and not (tmp_path / "out").exists()


# -------------------------------------------------------------------- other models


@pytest.mark.parametrize(
    ("levels", "dtype", "settings"),
    [
        (2, "float32", {"image_prior": "tf_efficientnet_lite0"}),
        (4, "float32", {}),
        (2, "float16", {"use_coor_input": False, "use_attention_mask": False}),
    ],
)
def test_full_models(levels, dtype, settings, tmp_path, rgb):
    model = small_model(small_folder(tmp_path / "configs", levels=levels), **settings)
    model.save_pretrained(tmp_path / "saved", inference={"resolution": 64, "point_radius": 3.0})
    output = tmp_path / "exported"
    assert main(["export", str(tmp_path / "saved"), str(output), "--dtype", dtype]) == 0
    predictor = MattePredictor.from_pretrained(output)
    assert predictor.point_radius == 3
    tolerance = TOLERANCES[dtype]
    assert_same_mattes(predictor.model, model, rgb, tolerance, resolution=64)
    assert_same_mattes(predictor.model, model, rgb, tolerance, resolution=96, keep_aspect=True)


def test_shipped_model(tmp_path):
    assert main(["export", str(SMALL), str(tmp_path / "exported")]) == 0
    predictors = [MattePredictor.from_pretrained(f) for f in (SMALL, tmp_path / "exported")]
    image = data.coffee()
    for given in ({"box": (80, 16, 478, 386)}, {"points": [(280, 120), (200, 200)]}, {}):
        # Not refined: where its window is almost constant, the guided filter amplifies rounding.
        one, other = (p.predict(**given, image=p.encode(image), refine="none") for p in predictors)
        np.testing.assert_allclose(other.alpha, one.alpha, rtol=0, atol=TOLERANCES["float32"])


def test_an_export_that_differs_leaves_nothing(tmp_path, capsys):
    model = small_model(small_folder(tmp_path / "configs", lite=True), LiteSDMatte)
    with torch.no_grad():
        model.vae.decoder.layers[-1].bias.fill_(torch.nan)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "out").mkdir()
    assert main(["export", str(tmp_path / "saved"), str(tmp_path / "out" / "model")]) == 2
    assert "differs from the original by nan" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
