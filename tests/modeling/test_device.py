"""A forward pass reads nothing back from its device, checked with fake CUDA tensors."""

import ast
import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from golden_cases import GOLDEN
from models import make_batch, tiny_folder, tiny_model
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import SDMatte as SDMatte_package
from SDMatte import MattePredictor
from SDMatte.engine.trainer import MatteTrainer, TrainingModel
from SDMatte.errors import ConfigError
from SDMatte.modeling import LiteSDMatte, SDMatte
from SDMatte.modeling.losses import MATTING_LOSSES, MattingCriterion
from SDMatte.prompts.types import PROMPT_TYPES

CUDA = torch.device("cuda")
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
READS = (DataDependentOutputException, DynamicOutputShapeException, AssertionError)


class _RealOnCpu(TorchDispatchMode):
    """Inside a `FakeTensorMode`, really run operations that involve only the CPU.

    Fake CUDA tensors have shapes but no values: reading one raises an error.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(x, FakeTensor) or getattr(x, "type", "") == "cuda" for x in leaves):
            result = func(*args, **kwargs)
            if isinstance(result, FakeTensor) and result.device.type == "cpu":
                raise AssertionError(f"{func} copies from the device.")
            return result
        with unset_fake_temporarily():
            return func(*args, **kwargs)


@contextlib.contextmanager
def fake_cuda():
    with FakeTensorMode(allow_non_fake_inputs=True), _RealOnCpu():
        yield


@contextlib.contextmanager
def autocast(dtype):
    """As `torch.autocast`, which refuses CUDA where there is none."""
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def build(cls, **settings):
    folder = tiny_folder() if cls is SDMatte else GOLDEN / "pretrained_litesdmatte"
    return cls(folder, load_weight=False, **settings)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: bool(x.any()),
        lambda x: int(x.sum()),
        lambda x: x.nonzero().tolist(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
    ],
)
def test_device_reads_are_detected(read):
    with fake_cuda():
        on_gpu = torch.ones(3).to(CUDA)
        assert on_gpu.device.type == "cuda"
        with pytest.raises(READS):
            read(on_gpu)
        read(torch.ones(3))


FEW = ("bbox_mask", "point_mask")
CASES = {  # types of weights and autocast, prompts; each pass takes seconds
    "float32": (SDMatte, "float32", None, PROMPT_TYPES),
    "bfloat16": (SDMatte, "bfloat16", None, FEW),
    "autocast": (SDMatte, "float32", torch.bfloat16, FEW),
    "lite, float32": (LiteSDMatte, "float32", None, FEW),
    "lite, autocast": (LiteSDMatte, "float32", torch.float16, FEW),
}
every_case = pytest.mark.parametrize(
    "cls, dtype, amp, names",
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name != "float32" else [])
        for name, case in CASES.items()
    ],
)


@every_case
def test_predictions_do_not_wait_for_the_device(cls, dtype, amp, names):
    one, two = make_batch(1), make_batch(2)
    two["bbox_mask"][1, ..., :40] = 1  # other keys than the first image
    with fake_cuda():
        model = build(cls, dtype=dtype).to(CUDA).eval()
        uploaded = {k: v.to(CUDA) if torch.is_tensor(v) else v for k, v in two.items()}
        for batch, prompts in ((one, FEW[:1]), (two, names), (uploaded, FEW[:1])):
            for name in prompts:
                with torch.no_grad(), autocast(amp):
                    alpha = model(batch, aux_input=name)
                assert alpha.device.type == "cuda" and alpha.shape == batch["bbox_mask"].shape


@every_case
def test_losses_do_not_wait_for_the_device(cls, dtype, amp, names):
    with fake_cuda():
        model = build(cls, dtype=dtype)
        task = TrainingModel(model, MattingCriterion(list(MATTING_LOSSES), 64)).to(CUDA).train()
        for name in names:
            with autocast(amp):
                losses = task(make_batch(1), name)
            assert {loss.device.type for loss in losses.values()} == {"cuda"}
            assert all(loss.requires_grad for loss in losses.values())


def test_training_out_of_memory_is_one_sentence():
    task = TrainingModel(tiny_model(), MattingCriterion(["l1_loss"], 64))
    batch = make_batch(1)
    batch["image"] = torch.zeros(1, 1, 1, 1).expand(1, 3, 2**22, 2**22)  # 192 TiB as a copy
    batch["bbox_mask"] = batch["image"][:, :1]
    optimizer = torch.optim.SGD(task.model.unet.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"Out of memory at step 0. Lower dataloader.*\.$"):
        MatteTrainer(task, [batch], optimizer, ["bbox_mask"]).train(0, 1)


def test_prediction_out_of_memory_is_one_sentence(rgb):
    predictor = MattePredictor(tiny_model(), resolution=64)
    encoded = predictor.encode(rgb)
    latent = encoded.latent[..., :1, :1].expand(-1, -1, 2**22, 2**22)
    large = dataclasses.replace(encoded, encode=lambda: (latent, ()))
    with pytest.raises(ConfigError, match="Out of memory on cpu at a resolution of 64x64 and a"):
        predictor.predict(box=(5, 5, 50, 50), image=large)


@pytest.mark.parametrize("package", ["data", "engine", "evaluation", "inference", "modeling"])
def test_no_call_names_a_gpu(package):
    files = list((Path(SDMatte_package.__file__).parent / package).rglob("*.py"))
    assert files
    for file in files:
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call):
                given = [*call.args, *(keyword.value for keyword in call.keywords)]
                names = [v.value for v in given if isinstance(v, ast.Constant)]
                place = f"{file}:{call.lineno}"
                assert not any(str(name).startswith("cuda") for name in names), place
                assert not (isinstance(call.func, ast.Attribute) and call.func.attr == "cuda"), (
                    place
                )
