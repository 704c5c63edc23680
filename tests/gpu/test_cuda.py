"""The project on an NVIDIA GPU; `script/check_gpu.sh` runs these tests.

`SDMATTE_TEST_DEVICE=cpu` runs those that work on a CPU, to check the tests themselves.
"""

import copy
import gc
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_cases import GOLDEN, cases, filled_state_dict, inputs
from gpu.ranks import train_on_one_gpu
from gpu.runs import TinyTraining
from models import ROUNDING, make_batch, tiny_model
from runs import CONFIG, settings

from SDMatte import MattePredictor
from SDMatte.data.loader import upload_ahead
from SDMatte.engine.trainer import MatteTrainer
from SDMatte.errors import ConfigError
from SDMatte.inference.loading import offload_model
from SDMatte.modeling import LiteSDMatte, SDMatte
from SDMatte.prompts.types import PROMPT_TYPES
from SDMatte.runtime.launch import launch

DEVICE = torch.device(os.environ.get("SDMATTE_TEST_DEVICE", "cuda"), 0)
MODELS = {"sdmatte": SDMatte, "litesdmatte": LiteSDMatte}
BOX = (9, 7, 60, 50)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no NVIDIA GPU"
    ),
]
only_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="not on this device")


@pytest.fixture(autouse=True)
def exact_float32():
    """Switch TF32 off: torch's default has it on for convolutions."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def golden_model(case):
    folder = GOLDEN / f"pretrained_{case['kind']}"
    model = MODELS[case["kind"]](
        folder, load_weight=False, aux_input=case["aux_input"], **case["extra"]
    )
    model.load_state_dict(filled_state_dict(case["kind"], case["seed"]))
    return model.to(DEVICE).train(case["train"])


@torch.no_grad()
@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_golden_numbers(case):
    model, batch = golden_model(case), inputs(case["seed"], case["caption"])
    alpha = model(batch)
    expected = torch.from_numpy(np.load(GOLDEN / f"{case['name']}.npz")["out"])
    torch.testing.assert_close(alpha.cpu(), expected, atol=1e-4, rtol=0)
    # CPUs take minutes for float16.
    for dtype in (torch.bfloat16, torch.float16)[: None if DEVICE.type == "cuda" else 1]:
        with torch.autocast(DEVICE.type, dtype):
            mixed = model(batch)
        assert mixed.isfinite().all()
        assert (mixed - alpha).abs().mean() < 0.03


@only_cuda
@torch.no_grad()
def test_predictions_do_not_wait_for_the_gpu(request):
    request.addfinalizer(lambda: torch.cuda.set_sync_debug_mode("default"))
    model, batch = tiny_model(aux_input=None).to(DEVICE), make_batch(2, 256, 256)
    for name in PROMPT_TYPES:
        model(batch, aux_input=name)  # caches the embedding of the empty caption
        torch.cuda.set_sync_debug_mode("error")
        model(batch, aux_input=name)
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def test_maps_on_the_device_give_the_same_mattes():
    model, batch = tiny_model(aux_input=None).to(DEVICE), make_batch(2, 256, 256)
    batch["bbox_mask"][1, ..., :100] = 1
    uploaded = {k: v.to(DEVICE) if torch.is_tensor(v) else v for k, v in batch.items()}
    for name in PROMPT_TYPES:
        alphas = (model(given, aux_input=name) for given in (batch, uploaded))
        torch.testing.assert_close(*alphas, **ROUNDING)


@only_cuda
def test_batches_are_uploaded_in_order():
    batches = [make_batch(1, seed=seed) for seed in range(3)]
    for given, uploaded in zip(batches, upload_ahead(batches, DEVICE), strict=True):
        assert uploaded["image"].is_cuda and not uploaded["bbox_mask"].is_cuda
        assert torch.equal(uploaded["image"].cpu(), given["image"])
        assert uploaded["image_name"] == given["image_name"]


@pytest.mark.parametrize(
    "overrides, tolerance",
    [
        (["train.amp.enabled=True", "train.amp.dtype=float16"], 0.02),
        (["train.amp.enabled=True", "train.amp.dtype=bfloat16"], 0.05),
        (["train.channels_last=True"], 2e-3),
        (["train.gradient_checkpointing=True"], 2e-3),
        (["train.float32_precision=high"], 0.02),
    ],
    ids=lambda value: str(value),
)
def test_training_options_keep_the_losses(overrides, tolerance, request):
    request.addfinalizer(lambda: torch.set_float32_matmul_precision("highest"))
    plain = TinyTraining(DEVICE).steps(2)
    run = TinyTraining(DEVICE, *overrides).steps(2)
    assert run.losses == pytest.approx(plain.losses, rel=tolerance)
    assert all(p.isfinite().all() for p in run.trainer.parameters)
    if "train.amp.dtype=float16" in overrides:
        assert run.trainer.scaler.get_scale() >= 1


def test_steps_equal_those_of_the_cpu():
    losses = [TinyTraining(device).steps(2).losses for device in (DEVICE, torch.device("cpu"))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_resumed_run_is_exact(request, monkeypatch):
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # with warn_only, fused attention is not exact
    # The Laplacian losses are left out: CUDA's gradient of reflection padding is not deterministic.
    overrides = ["criterion.losses=[unknown_l1_loss,known_l1_loss]"]
    whole = TinyTraining(DEVICE, *overrides).steps(2)
    state = copy.deepcopy((whole.task.state_dict(), whole.trainer.state_dict()))
    whole.steps(1)
    resumed = TinyTraining(DEVICE, *overrides, first_batch=2)
    resumed.task.load_state_dict(state[0])
    resumed.trainer.load_state_dict(state[1])
    resumed.trainer.iter = whole.trainer.iter - 1
    resumed.steps(1)
    assert resumed.losses[-1] == whole.losses[-1]
    for one, other in zip(resumed.trainer.parameters, whole.trainer.parameters, strict=True):
        assert torch.equal(one, other)


@only_cuda
def test_offloading_lowers_the_peak(rgb):
    def peak(offload: bool) -> float:
        gc.collect()
        before = torch.cuda.memory_allocated(DEVICE)
        model = tiny_model(aux_input=None)
        if offload:
            offload_model(model, DEVICE)
        else:
            model.to(DEVICE)
        predictor = MattePredictor(model, resolution=64, device=DEVICE)
        torch.cuda.reset_peak_memory_stats(DEVICE)  # to what is allocated now
        alphas.append(predictor.predict(box=BOX, image=predictor.encode(rgb)).alpha)
        return torch.cuda.max_memory_allocated(DEVICE) - before

    alphas: list[np.ndarray] = []
    assert peak(offload=True) < peak(offload=False)
    np.testing.assert_allclose(*alphas, atol=1e-3)


def test_out_of_memory_is_one_sentence(rgb):
    predictor = MattePredictor(tiny_model().to(DEVICE), resolution=64)
    encoded = predictor.encode(rgb)
    latent = encoded.latent[..., :1, :1].expand(-1, -1, 2**22, 2**22)
    with pytest.raises(ConfigError, match="Out of memory on .* at a resolution of 64x64 and a"):
        predictor.predict(box=BOX, image=replace(encoded, encode=lambda: (latent, ())))
    assert predictor.predict(box=BOX, image=encoded).alpha.std() > 0  # it still works
    task = TinyTraining(DEVICE).task
    batch = make_batch(1)
    batch["image"] = torch.zeros(1, 1, 1, 1, device=DEVICE).expand(1, 3, 2**22, 2**22)
    batch["bbox_mask"] = batch["image"][:, :1]
    optimizer = torch.optim.SGD(task.model.unet.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="Out of memory at step 0. Lower dataloader.train"):
        MatteTrainer(task, [batch], optimizer, ["bbox_mask"]).train(0, 1)


@only_cuda
@torch.no_grad()
def test_a_prediction_can_be_captured_in_a_cuda_graph():
    model, batch = tiny_model().to(DEVICE), make_batch(1)
    kind = PROMPT_TYPES["bbox_mask"]
    static = {k: v.to(DEVICE) for k, v in batch.items() if torch.is_tensor(v)}

    def predict() -> torch.Tensor:
        latent, _ = model.predict_latent(
            model.encode(static["image"]), static[kind.mask_key], static[kind.coords_key], kind
        )
        return model.decode(latent)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        predict()  # warm up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        alpha = predict()
    other = make_batch(1, seed=5)
    other["bbox_mask"] = other["bbox_mask"].flip(-2)
    for key in static:
        static[key].copy_(other[key])
    graph.replay()
    torch.testing.assert_close(alpha, predict(), **ROUNDING)


def test_one_process_under_torchrun_trains(sample_root, tmp_path):
    words = [*settings(sample_root, tmp_path / "run"), f"train.device={DEVICE.type}"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    command = [sys.executable, *torchrun, "-m", "SDMatte", "train", CONFIG, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "model_final.pth").is_file()


def test_two_processes_share_the_device():
    launch(train_on_one_gpu, num_processes=2, args=(DEVICE,), device="cpu")  # over gloo


@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=["compiled", "graphs"])
@torch.no_grad()
def test_compiled_models_predict_the_same(options):
    torch._dynamo.reset()
    eager, batch = tiny_model().to(DEVICE), make_batch(1)
    model = tiny_model().to(DEVICE)
    model.compile(**(options if DEVICE.type == "cuda" else {"backend": "eager"}))
    expected = eager(batch)
    for _ in range(3):  # CUDA graphs are recorded in the second call and replayed in the third
        torch.testing.assert_close(model(batch), expected, **ROUNDING)
