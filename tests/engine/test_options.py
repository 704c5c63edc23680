"""Options for speed and memory: each takes effect and changes nothing else."""

import copy
import importlib.util

import pytest
import torch
from tiny_runs import TinyRun
from torch import nn

from SDMatte.engine import options
from SDMatte.engine.options import adamw, match_layouts
from SDMatte.errors import ConfigError, DependencyError
from SDMatte.modeling import weights
from SDMatte.modeling.losses import MATTING_LOSSES, DistillationCriterion, MattingCriterion

ONE_PROMPT = "model.aux_input=bbox_mask"  # with masked self-attention


def is_channels_last(run):
    weight = run.task.model.unet.conv_out.weight
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


OPTIONS = {
    "gradient checkpointing": (
        ["train.gradient_checkpointing=True"],
        lambda run: run.task.model.unet.is_gradient_checkpointing,
    ),
    "fused": ([], lambda run: run.trainer.optimizer.defaults["fused"]),
    "channels last": (["train.channels_last=True"], is_channels_last),
    "compile": (
        ["train.compile.enabled=True"],
        lambda run: torch._dynamo.utils.counters["frames"]["ok"] > 0,
    ),
}


@pytest.fixture(scope="module")
def plain():
    return TinyRun.build(ONE_PROMPT, "optimizer.fused=False").run(2)


@pytest.mark.parametrize(
    ("words", "is_on"),
    [
        pytest.param(*option, id=name, marks=[pytest.mark.slow] if name == "compile" else [])
        for name, option in OPTIONS.items()
    ],
)
def test_options_change_neither_steps_nor_names(words, is_on, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(options, "BACKEND", "eager")  # traces the model, and does not compile
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert not is_on(plain)
    run = TinyRun.build(ONE_PROMPT, *words).run(2)
    assert is_on(run)
    # The second loss depends on all gradients of the first step.
    assert run.losses == pytest.approx(plain.losses, rel=2e-3)
    state, expected = run.task.model.state_dict(), plain.task.model.state_dict()
    assert list(state) == list(expected)
    torch.save({"model": state}, tmp_path / "model.pth")
    loaded = TinyRun.build(seed=1).task.model
    weights.load_checkpoint(loaded, tmp_path / "model.pth")
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_the_precision_of_float32(request):
    request.addfinalizer(lambda: torch.set_float32_matmul_precision("highest"))
    TinyRun.build("train.float32_precision=high")
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize(("dtype", "close"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_mixed_precision(dtype, close, plain):
    words = [ONE_PROMPT, "train.amp.enabled=True", f"train.amp.dtype={dtype}"]
    run = TinyRun.build(*words).run(1)
    assert run.losses == pytest.approx(plain.losses[:1], rel=close)
    assert run.losses != pytest.approx(plain.losses[:1], rel=1e-6)  # autocast is on
    assert any(p.grad.any() for p in run.trainer.parameters if p.grad is not None)
    assert {p.dtype for p in run.task.model.parameters()} == {torch.float32}
    scaler = run.trainer.state_dict()["scaler"]
    assert bool(scaler) == (dtype == "float16")
    if scaler:
        other = TinyRun.build(*words)
        other.trainer.load_state_dict(
            {**run.trainer.state_dict(), "scaler": {**scaler, "scale": 8}}
        )
        assert other.trainer.scaler.get_scale() == 8
        scale = other.trainer.scaler.get_scale()
        other.trainer.load_state_dict(copy.deepcopy(plain.trainer.state_dict()))  # has none
        assert other.trainer.scaler.get_scale() == scale


@pytest.mark.numerics
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_exact_in_mixed_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    # More pixels than the largest number of float16.
    pred, label = 0.1 + 0.8 * torch.rand(2, 1, 1, 320, 320, generator=generator)
    trimap = torch.ones(1, 1, 320, 320)
    trimap[..., :32] = 0
    criterion = MattingCriterion(list(MATTING_LOSSES), size=320)
    features = torch.rand(2, 3, 4, 8, 8, generator=generator).to(dtype)
    distillation = DistillationCriterion(["mse", "l1"])
    plain = criterion(pred, label, trimap), distillation(*features.float())
    with torch.autocast("cpu", dtype=dtype):
        mixed = criterion(pred, label, trimap), distillation(*features)
        coarse = criterion(pred.to(dtype), label, trimap)
    assert mixed == plain  # the same computation: the losses disable autocast
    for name, value in coarse.items():
        assert value.item() == pytest.approx(plain[0][name].item(), rel=0.01), name


def test_clipping_limits_the_norm_of_all_gradients_together():
    run = TinyRun.build(ONE_PROMPT, "train.clip_grad_norm=0.1").run(1)
    gradients = [p.grad for p in run.trainer.parameters if p.grad is not None]
    assert torch.stack([g.norm() for g in gradients]).norm() == pytest.approx(0.1, rel=1e-3)
    assert run.trainer.storage.history("grad_norm").latest() > 0.2  # before clipping


def test_a_missing_compiler(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match="compile.enabled=True does not work here") as caught:
        TinyRun.build("train.compile.enabled=True")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["True", "False"])
def test_resuming_in_another_memory_layout(before):
    start = TinyRun.build(ONE_PROMPT, f"train.channels_last={before}").run(1)
    weights = []
    for fused in (True, False):  # torch's loops work in any layout
        other = f"train.channels_last={before == 'False'}"
        run = TinyRun.build(ONE_PROMPT, other)
        run.task.load_state_dict(start.task.state_dict())
        run.trainer.load_state_dict(copy.deepcopy(start.trainer.state_dict()))
        for group in run.trainer.optimizer.param_groups:
            group["fused"] = fused
        weights.append(run.run(1).task.model.unet.conv_in.weight)
    # The gradients are equal; a step is up to 2e-3.
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_an_8_bit_state_in_another_memory_layout_is_refused():
    weight = torch.nn.Parameter(torch.zeros(2, 2, 3, 3))
    optimizer = torch.optim.AdamW([weight])
    state = torch.zeros_like(weight, dtype=torch.uint8)
    optimizer.state[weight] = {"state1": state.to(memory_format=torch.channels_last)}
    with pytest.raises(ValueError, match="another train.channels_last"):
        match_layouts(optimizer)


def test_eight_bit_optimizer():
    words = ["optimizer.eight_bit=True"]
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(DependencyError, match="optimizer.eight_bit needs the package bitsand"):
            TinyRun.build(*words)
        return
    run = TinyRun.build(*words).run(2)
    states = run.trainer.optimizer.state.values()
    assert any(state["state1"].dtype == torch.uint8 for state in states)


def test_optimizer_settings():
    layer = nn.Linear(2, 2)
    expected = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.2, "fused": True}
    optimizer = adamw(layer.parameters(), eight_bit=False, **expected)
    assert type(optimizer) is torch.optim.AdamW
    assert {name: optimizer.defaults[name] for name in expected} == expected
