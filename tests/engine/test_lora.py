"""LoRA: what it trains, and that its checkpoints are plain ones."""

import shutil

import pytest
import torch
from models import ROUNDING, make_batch, tiny_model
from tiny_runs import CONFIG, TinyRun, tiny_settings

from SDMatte.engine.checkpoint import read_run
from SDMatte.engine.lora import NEW_LAYERS, Adapters
from SDMatte.engine.train import train
from SDMatte.errors import CheckpointError, ConfigError
from SDMatte.modeling import weights

ENABLED = "train.lora.enabled=True"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LAYERS = [*ATTENTION, "conv1", "proj_in", "linear_1"]  # convolutions and linear layers


@pytest.fixture(scope="module")
def trained():
    """A run of three steps with adapters in all kinds of layers, and its initial weights."""
    words = (f"train.lora.target_modules=[{','.join(LAYERS)}]", "train.lora.rank=4")
    run = TinyRun.build(ENABLED, *words)
    start = {name: value.clone() for name, value in run.task.model.state_dict().items()}
    return run.run(3), start


def predict(model):
    with torch.no_grad():
        return model.eval()(make_batch(seed=9), aux_input="bbox_mask")


@pytest.mark.numerics
def test_new_adapters_have_no_effect():
    model = tiny_model()
    before, names = predict(model), list(model.state_dict())
    Adapters(model, rank=8, alpha=8, dropout=0.0, target_modules=ATTENTION)
    effects = [p for name, p in model.named_parameters() if ".lora_B." in name]
    assert effects and not any(parameter.any() for parameter in effects)
    torch.testing.assert_close(predict(model), before, **ROUNDING)
    with torch.no_grad():
        effects[0].fill_(1)
    assert not torch.allclose(predict(model), before, **ROUNDING)
    assert list(model.state_dict()) == names


def test_layers_of_a_variant_are_trained_in_full():
    model = tiny_model()
    model.new_layers = ("unet.conv_out.",)
    Adapters(model, rank=8, alpha=8, dropout=0.0, target_modules=ATTENTION)
    full = {n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n}
    assert {name.split(".")[1] for name in full} == {*NEW_LAYERS, "conv_out"}


def test_only_new_layers_and_adapted_ones_change(trained):
    run, start = trained
    names = {n for n, p in run.task.model.named_parameters() if p.requires_grad}
    full = {name for name in names if ".lora_" not in name}
    assert {name.split(".")[1] for name in full} == set(NEW_LAYERS)
    assert len(full) == 2 + 2 + 4 + 4  # conv_in, aux_conv_in, two embeddings of two layers
    assert "unet.time_embedding.linear_1.lora_A.default.weight" in names
    count = sum(p.numel() for p in run.task.model.parameters() if p.requires_grad)
    assert count == sum(p.numel() for p in run.trainer.parameters)

    after = run.task.model.state_dict()
    assert after.keys() == start.keys()
    changed = {name for name in after if not torch.equal(after[name], start[name])}
    ends = tuple(f".{end}.weight" for end in LAYERS)
    for name in after:
        is_new = name.split(".")[1] in NEW_LAYERS
        may_change = name.startswith("unet.") and (is_new or name.endswith(ends))
        assert name not in changed or may_change, name
    assert {n for n in after if n.endswith(ends) and n.startswith("unet.")} <= changed
    assert "unet.conv_in.weight" in changed and "unet.aux_conv_in.weight" in changed


@pytest.mark.numerics
def test_merged_and_unmerged_predictions_are_equal(trained):
    run, _ = trained
    plain = TinyRun.build().task.model
    untrained = predict(plain)
    weights.load_strict(plain, run.task.model.state_dict(), "merged")
    expected = predict(run.task.model)
    torch.testing.assert_close(predict(plain), expected, **ROUNDING)
    assert not torch.allclose(untrained, expected, atol=1e-3)


def test_loading_a_plain_checkpoint_resets_the_adapters(trained):
    _, start = trained
    run = TinyRun.build(ENABLED, seed=1)
    effects = [p for n, p in run.task.model.named_parameters() if ".lora_B." in n]
    with torch.no_grad():
        for parameter in effects:
            parameter.normal_()
    weights.load_strict(run.task.model, start, "start")
    loaded = run.task.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in start.items())
    assert not any(parameter.any() for parameter in effects)
    run.run(1)
    assert any(parameter.any() for parameter in effects)


@pytest.mark.slow
def test_runs_resume_and_leave_plain_checkpoints(sample_root, tmp_path, monkeypatch):
    """With a moving average, so that the saved weights differ from those in training.

    A changed setting of the optimizer has no effect, and the log says so.
    """
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))
    words = tiny_settings(
        *(ENABLED, "train.ema.enabled=True", "train.ema.decay=0.5"),
        *("train.max_iter=2", "train.checkpoints=2", "train.evaluations=0"),
    )
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(CONFIG, [*words, f"train.output_dir={whole}"])
    again.mkdir()
    for name in ("model_0000000.pth", "config.yaml"):
        shutil.copy(whole / name, again)
    train(CONFIG, [*words, f"train.output_dir={again}", "optimizer.eps=1e-3"], resume=True)
    assert "No effect on a resumed run: optimizer.eps." in (again / "log.txt").read_text()
    first, one, two = (
        read_run(path)
        for path in (
            whole / "model_0000000.pth",
            whole / "model_0000001.pth",
            again / "model_0000001.pth",
        )
    )
    plain = TinyRun.build().task.model
    assert one["model"].keys() == plain.state_dict().keys()
    for part in ("model", "adapters"):
        assert any(not torch.equal(first[part][name], one[part][name]) for name in one[part])
        for name, value in one[part].items():
            assert torch.equal(two[part][name], value), name
    final = weights.read_tensors(whole / "model_final.pth")
    assert all(torch.equal(final[name], value) for name, value in one["model"].items())
    weights.load_checkpoint(plain, whole / "model_final.pth")


def test_a_state_of_other_adapters_is_refused(trained):
    run, _ = trained
    other = TinyRun.build(ENABLED, "train.lora.rank=2")
    with pytest.raises(CheckpointError, match="another train.lora.rank or target_modules"):
        other.adapters.load_state_dict(run.adapters.state_dict())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.lora.target_modules=[to_q,to_x]",
            "no layer is named to_x. Layers of this U-Net: .*to_out.0, to_q",
        ),
        ("train.lora.target_modules=[aux_conv_in]", "no layer is named aux_conv_in."),
        ("train.lora.target_modules=[]", "the list is empty. Layers of this U-Net: conv"),
    ],
)
def test_invalid_targets(override, message):
    with pytest.raises(ConfigError, match=message):
        TinyRun.build(ENABLED, override)
