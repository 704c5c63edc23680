import cv2
import numpy as np
import pytest
import torch

from SDMatte.errors import ConfigError, PromptError
from SDMatte.evaluation.baselines import (
    BoxAsAlpha,
    ClosedForm,
    GrabCut,
    PromptAsAlpha,
    get_baseline,
)

SIZE = 64


@pytest.fixture
def scene():
    """A red soft disc on blue, with its box, mask and trimap; two pictures in [-1, 1]."""
    disc = np.zeros((SIZE, SIZE), np.float32)
    cv2.circle(disc, (30, 34), 15, 1.0, -1)
    alpha = cv2.GaussianBlur(disc, (0, 0), 1.5)
    texture = np.random.default_rng(0).normal(0, 0.03, (3, SIZE, SIZE))
    red, blue = (np.array(c).reshape(3, 1, 1) for c in ((0.8, 0.2, 0.1), (0.1, 0.3, 0.8)))
    image = np.clip(alpha * red + (1 - alpha) * blue + texture, 0, 1)
    box = np.zeros_like(alpha)
    box[17:52, 13:48] = 1
    trimap = np.select([alpha < 0.02, alpha > 0.98], [0, 1], 0.5)
    maps = {"image": image, "bbox_mask": box[None], "trimap": trimap[None], "mask": disc[None]}
    batch = {
        k: torch.tensor(np.stack([v, v]) * 2 - 1, dtype=torch.float32) for k, v in maps.items()
    }
    return batch, torch.tensor(alpha)


def test_prompt_as_alpha(scene):
    batch, _ = scene
    found = BoxAsAlpha()(batch)
    assert found.shape == (2, 1, SIZE, SIZE)
    assert found.sum() == 2 * 35 * 35
    assert PromptAsAlpha("trimap")(batch).unique().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("prompt", ["box", "mask", "trimap"])
def test_grabcut_beats_the_box(scene, prompt):
    batch, alpha = scene
    found = GrabCut(prompt)(batch)
    assert found.shape == (2, 1, SIZE, SIZE)
    assert torch.equal(found[0], found[1])
    assert 0 <= found.min() <= found.max() <= 1
    box_error = (BoxAsAlpha()(batch)[0, 0] - alpha).abs().mean()
    assert (found[0, 0] - alpha).abs().mean() < box_error / 4
    shrunk = GrabCut(prompt, max_side=32)(batch)
    assert shrunk.shape == found.shape
    assert (shrunk[0, 0] - alpha).abs().mean() < box_error / 2


def test_grabcut_without_two_sides(scene):
    batch, _ = scene
    for value in (-1.0, 1.0):
        batch["bbox_mask"] = torch.full((2, 1, SIZE, SIZE), value)
        assert torch.equal(GrabCut()(batch), (batch["bbox_mask"] + 1) / 2)


def test_closed_form(scene):
    batch, alpha = scene
    found = ClosedForm()(batch)
    assert (found[0, 0] - alpha).abs().mean() < 0.02
    batch["trimap"] = torch.zeros(2, 1, SIZE, SIZE)
    assert torch.equal(ClosedForm()(batch), torch.full((2, 1, SIZE, SIZE), 0.5))


def test_names():
    for name, prompt in (("prompt", "point"), ("grabcut", "mask"), ("closed-form", "trimap")):
        assert prompt in get_baseline(name).prompts
    assert get_baseline("prompt")("point").prompt.alias == "point"
    with pytest.raises(ConfigError, match="'x'; known are prompt, grabcut, closed-form"):
        get_baseline("x")


def test_wrong_prompts():
    with pytest.raises(PromptError, match="only trimap"):
        ClosedForm("box")
    with pytest.raises(PromptError, match="only box, mask, trimap"):
        GrabCut("point")
    with pytest.raises(PromptError, match="Unknown prompt"):
        PromptAsAlpha("nothing")
