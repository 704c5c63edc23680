"""Finding and loading models from all sources, with their defaults."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from golden_cases import GOLDEN
from huggingface_hub import constants
from models import ROUNDING, tiny_folder, tiny_model
from safetensors.torch import save_file

from SDMatte import MattePredictor
from SDMatte.errors import CheckpointError, ConfigError
from SDMatte.inference.defaults import SMALL_MODEL, InferenceDefaults
from SDMatte.inference.loading import find_model
from SDMatte.modeling import LiteSDMatte, SDMatte
from SDMatte.runtime.config import load_config
from SDMatte.samples import real_photographs

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
BOX = (9, 7, 60, 50)


@pytest.fixture(scope="module")
def model():
    return tiny_model(aux_input=None)


@pytest.fixture(scope="module")
def expected(model, rgb):
    predictor = MattePredictor(model, resolution=64)
    return predictor.predict(box=BOX, image=predictor.encode(rgb)).alpha


def predict(rgb, *args, **settings):
    settings = {"device": "cpu", "dtype": "float32", "resolution": 64, **settings}
    predictor = MattePredictor.from_pretrained(*args, **settings)
    return predictor.predict(box=BOX, image=predictor.encode(rgb)).alpha


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A folder written by `save_pretrained`."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder, inference={"resolution": 96, "keep_aspect": True})
    return folder


@pytest.fixture
def published(model, tmp_path):
    """Component configs with a checkpoint beside them, as published."""
    folder = tmp_path / "hub"
    shutil.copytree(tiny_folder(), folder)
    torch.save(model.state_dict(), folder / "SDMatte.pth")
    return folder


def test_saved_folders_have_defaults(saved, rgb, expected):
    source = find_model(saved)
    assert source.model_class is SDMatte
    assert source.defaults == InferenceDefaults(resolution=96, keep_aspect=True)
    predictor = MattePredictor.from_pretrained(saved, device="cpu", dtype="float32")
    assert (predictor.resolution, predictor.keep_aspect) == (96, True)
    assert predictor.point_radius == pytest.approx(35 * 96 / 1024)
    np.testing.assert_allclose(predict(rgb, saved, keep_aspect=False), expected, **ROUNDING)


@pytest.mark.numerics
def test_published_folders_and_files(published, rgb, expected):
    assert find_model(published).defaults == InferenceDefaults()
    for place in (published, published / "SDMatte.pth"):
        np.testing.assert_allclose(predict(rgb, place), expected, **ROUNDING)
    assert MattePredictor.from_pretrained(published, device="cpu").prompts == (
        "point",
        "box",
        "mask",
        "auto",
        "trimap",
    )


def test_sdmatte_star_is_recognized_by_its_file(published):
    (published / "SDMatte.pth").rename(published / "SDMatte_plus.pth")
    shutil.copy(published / "SDMatte_plus.pth", published / "SDMatte.pth")
    for arguments in ((published, "SDMatte_plus.pth"), (published / "SDMatte_plus.pth",)):
        predictor = MattePredictor.from_pretrained(*arguments, device="cpu")
        assert predictor.prompts == ("box", "auto")
        assert predictor.model.settings.aux_input_list == ("bbox_mask",)
    (published / "SDMatte.pth").unlink()
    assert MattePredictor.from_pretrained(published, device="cpu").prompts == ("box", "auto")
    copy = (published / "SDMatte_plus.pth").rename(published / "SDMatte_plus_fp16.pth")
    assert find_model(copy).arguments["aux_input_list"] == ["bbox_mask"]


def test_a_hub_id_works_offline_from_the_cache(published, tmp_path, monkeypatch, rgb, expected):
    repository = tmp_path / "cache" / "models--LongfeiHuang--SDMatte"
    revision = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(published, repository / "snapshots" / revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    np.testing.assert_allclose(predict(rgb, "LongfeiHuang/SDMatte"), expected, **ROUNDING)
    with pytest.raises(CheckpointError, match="has no checkpoint named SDMatte_plus.pth"):
        predict(rgb, "LongfeiHuang/SDMatte", "SDMatte_plus.pth")
    with pytest.raises(CheckpointError, match="not found locally or in the hub's cache"):
        predict(rgb, "LongfeiHuang/Other")


def test_a_checkpoint_with_another_name(published, model, rgb, expected):
    (published / "SDMatte.pth").unlink()
    save_file(model.state_dict(), published / "mine.safetensors")
    np.testing.assert_allclose(predict(rgb, published), expected, **ROUNDING)
    np.testing.assert_allclose(
        predict(rgb, published, published / "mine.safetensors"), expected, **ROUNDING
    )


def test_litesdmatte_is_recognized_by_its_autoencoder(tmp_path, rgb):
    folder = tmp_path / "lite"
    shutil.copytree(GOLDEN / "pretrained_litesdmatte", folder)
    torch.manual_seed(0)
    lite = LiteSDMatte(folder, load_weight=False)
    torch.save(lite.state_dict(), folder / "LiteSDMatte.pth")
    assert find_model(folder).model_class is LiteSDMatte
    alpha = predict(rgb, folder)
    predictor = MattePredictor(lite, resolution=64)
    same = predictor.predict(box=BOX, image=predictor.encode(rgb)).alpha
    np.testing.assert_allclose(alpha, same, **ROUNDING)


def test_training_runs(model, tmp_path, rgb, expected):
    run = tmp_path / "run"
    run.mkdir()
    config = load_config(
        ROOT / "configs" / "SDMatte_small.py",
        [
            f"model.pretrained_model_name_or_path={tiny_folder()}",
            "model.image_prior=null",
            "dataloader.test.dataset.size=64",
            "dataloader.test.dataset.settings.point_radius=3",
            "dataloader.test.dataset.settings.psm=circle",
        ],
    )
    LazyConfig.save(config, str(run / "config.yaml"))
    torch.save({"model": model.state_dict()}, run / "model_final.pth")
    shutil.copy(run / "model_final.pth", run / "model_0000009.pth")
    assert find_model(run).defaults == InferenceDefaults(
        resolution=64, point_radius=3, psm="circle"
    )
    for arguments in ((run,), (run / "model_0000009.pth",), (run, "model_0000009.pth")):
        np.testing.assert_allclose(predict(rgb, *arguments), expected, **ROUNDING)


def test_weights_are_loaded_in_the_given_type(saved):
    model = find_model(saved).load(CPU, "bfloat16")
    for part, dtype in (
        (model.unet, torch.bfloat16),
        (model.text_encoder, torch.bfloat16),
        (model.vae, torch.float32),  # a narrow one
    ):
        assert {p.dtype for p in part.parameters()} == {dtype}
    assert find_model(saved).load(CPU, "auto").unet.dtype == torch.float32  # a narrow model


def spoil(folder, name, content):
    (folder / name).write_text(content)
    return folder


def test_refused_models(saved, published, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    two = tmp_path / "two"
    shutil.copytree(tiny_folder(), two)
    spoiled = tmp_path / "spoiled"
    shutil.copytree(tiny_folder(), spoiled)
    run = tmp_path / "run"
    run.mkdir()
    cases = [
        ((empty,), CheckpointError, "empty is not a model: it has neither"),
        ((two,), CheckpointError, "has no checkpoint: expected model.safetensors, SDMatte.pth"),
        ((tmp_path / "none.pth",), CheckpointError, "Checkpoint file .* not found"),
        ((published / "SDMatte.pth", "SDMatte_plus.pth"), ConfigError, "checkpoints: give only"),
        ((spoil(run, "config.yaml", "a: ["),), CheckpointError, "not the config of a training"),
        ((spoil(spoiled, "sdmatte.json", "{"),), CheckpointError, "is not valid JSON"),
        ((saved, "none.pth"), CheckpointError, "has no checkpoint named none.pth"),
    ]
    for arguments, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            MattePredictor.from_pretrained(*arguments, device="cpu")
    for content, sentence in (
        ({"model": "SAM"}, "a model of class SAM; it must be SDMatte or LiteSDMatte"),
        ({"inference": {"size": 3}}, "Unknown setting inference.size; known are resolution"),
        ({"inference": {"resolution": -1}}, "inference.resolution must be greater than 0; got -1"),
        ({"inference": 3}, "not a model card: its sections must be"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            find_model(spoil(spoiled, "sdmatte.json", json.dumps(content)))
    with pytest.raises(ConfigError, match="dtype must be float32, bfloat16 or float16"):
        MattePredictor.from_pretrained(saved, device="cpu", dtype="int8")


def test_shipped_small_model(caplog):
    """Without a model, offline; it is small and sees the object of a photograph."""
    predictor = MattePredictor.from_pretrained()
    assert "Using the bundled small model" in caplog.text
    assert (predictor.resolution, predictor.refine) == (224, "guided")
    assert sum(f.stat().st_size for f in SMALL_MODEL.rglob("*")) < 30e6
    coffee = next(p for p in real_photographs() if p.name == "coffee")
    predictor.set_image(coffee.load())
    for prompt in ({"box": (80, 16, 479, 387)}, {"points": [(280, 120), (200, 200), (280, 280)]}):
        alpha = predictor.predict(**prompt).alpha
        assert alpha[100:250, 200:360].mean() > 0.6  # the cup
        assert alpha[:, :40].mean() < 0.3 and alpha[:, 560:].mean() < 0.3
