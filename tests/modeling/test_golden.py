"""Models and losses equal the public reference (tests/golden)."""

import json

import numpy as np
import pytest
import torch
from golden_cases import GOLDEN, cases, filled_state_dict, inputs, published_shapes

from SDMatte.modeling import LiteSDMatte, SDMatte
from SDMatte.modeling.losses import DistillationCriterion, MattingCriterion

MODELS = {"sdmatte": SDMatte, "litesdmatte": LiteSDMatte}
MATTING = ["unknown_l1_loss", "known_l1_loss", "known_lap_loss", "unknown_lap_loss"]

pytestmark = pytest.mark.numerics


def build(case: dict):
    folder = GOLDEN / f"pretrained_{case['kind']}"
    model = MODELS[case["kind"]](
        folder, load_weight=False, aux_input=case["aux_input"], **case["extra"]
    )
    model.load_state_dict(filled_state_dict(case["kind"], case["seed"]))
    return model.train(case["train"])


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_outputs_features_and_gradients(case):
    model = build(case)
    batch = inputs(case["seed"], case["caption"])
    golden = np.load(GOLDEN / f"{case['name']}.npz")
    with torch.set_grad_enabled(case["train"]):
        alpha, features = model(batch, return_features=True)
    np.testing.assert_allclose(alpha.detach().numpy(), golden["out"], atol=2e-4)
    if "feature_0_slice" in golden:
        for i, feature in enumerate(features):
            part = feature[:, :4, :4, :4].detach().numpy()
            np.testing.assert_allclose(part, golden[f"feature_{i}_slice"], atol=2e-4)
            mean_abs = feature.abs().mean().item()
            assert mean_abs == pytest.approx(float(golden[f"feature_{i}_mean_abs"]), rel=1e-4)
    if not case["train"]:
        return
    losses = MattingCriterion(MATTING, size=128)(alpha, (batch["alpha"] + 1) / 2, batch["trimap"])
    for name in MATTING:
        assert losses[name].item() == pytest.approx(float(golden[name]), rel=1e-4)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    checked = [key for key in golden.files if key.startswith("gradnorm:")]
    assert checked
    for key in checked:
        gradient = parameters[key.removeprefix("gradnorm:")].grad
        norm = 0.0 if gradient is None else gradient.norm().item()
        assert norm == pytest.approx(float(golden[key]), rel=2e-3, abs=1e-7), key


@pytest.mark.parametrize("kind", MODELS)
def test_state_dict_has_the_published_names_and_shapes(kind):
    model = MODELS[kind](GOLDEN / f"pretrained_{kind}", load_weight=False)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == published_shapes(kind)


def golden_losses():
    tensors = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "losses.npz").items()}
    return tensors, json.loads((GOLDEN / "losses.json").read_text())


def test_losses():
    tensors, golden = golden_losses()
    names = [n for n in golden if not n.startswith("distill") and n != "all_known"]
    criterion = MattingCriterion(names, size=64)
    losses = criterion(tensors["pred"], tensors["label"], tensors["trimap"])
    assert {n: v.item() for n, v in losses.items()} == pytest.approx(
        {n: golden[n] for n in names}, rel=1e-5
    )


def test_losses_of_a_trimap_without_unknown_pixels():
    tensors, golden = golden_losses()
    known = torch.where(tensors["trimap"] == 0, 1.0, tensors["trimap"])
    criterion = MattingCriterion(list(golden["all_known"]), size=64)
    losses = criterion(tensors["pred"], tensors["label"], known)
    assert {n: v.item() for n, v in losses.items()} == pytest.approx(golden["all_known"], rel=1e-5)


def test_gradient_of_the_published_losses():
    tensors, _ = golden_losses()
    pred = tensors["pred"].clone().requires_grad_()
    losses = MattingCriterion(MATTING, size=64)(pred, tensors["label"], tensors["trimap"])
    sum(losses.values()).backward()
    torch.testing.assert_close(pred.grad, tensors["grad"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("losses", "name"), [(["mse"], "distill_mse"), (["mse", "l1"], "distill_mse_l1")]
)
def test_distillation(losses, name):
    tensors, golden = golden_losses()
    student = [tensors[f"s{i}"].clone().requires_grad_() for i in range(3)]
    teacher = [tensors[f"t{i}"].clone().requires_grad_() for i in range(3)]
    loss = DistillationCriterion(losses)(student, teacher)
    assert loss.item() == pytest.approx(golden[name], rel=1e-5)
    loss.backward()
    assert all(t.grad is not None for t in student)
    assert all(t.grad is None for t in teacher)
