"""The baselines on a synthetic disc."""

import cv2
import numpy as np
import pytest
import torch

from SDMatte.errors import PromptError
from SDMatte.evaluation.baselines import (
    ClosedForm,
    GrabCut,
    GuidedGrabCut,
    PromptBaseline,
)
from SDMatte.prompts.maps import prompt_of_points

SIZE = 64


@pytest.fixture
def scene():
    """A batch of two equal images, a soft red disc on blue, with its prompts; and its alpha."""
    disc = np.zeros((SIZE, SIZE), np.float32)
    cv2.circle(disc, (30, 34), 15, 1.0, -1)
    alpha = cv2.GaussianBlur(disc, (0, 0), 1.5)
    texture = np.random.default_rng(0).normal(0, 0.03, (3, SIZE, SIZE))
    red, blue = (np.array(c).reshape(3, 1, 1) for c in ((0.8, 0.2, 0.1), (0.1, 0.3, 0.8)))
    image = np.clip(alpha * red + (1 - alpha) * blue + texture, 0, 1)
    box = np.zeros_like(alpha)
    box[17:52, 13:48] = 1
    trimap = np.select([alpha < 0.02, alpha > 0.98], [0, 1], 0.5)
    points = prompt_of_points([(30, 34), (25, 30), (33, 40)], alpha.shape, radius=6).mask
    maps = {
        "image": image,
        "bbox_mask": box[None],
        "trimap": trimap[None],
        "mask": disc[None],
        "point_mask": points[None],
    }
    batch = {
        k: torch.tensor(np.stack([v, v]) * 2 - 1, dtype=torch.float32) for k, v in maps.items()
    }
    return batch, torch.tensor(alpha)


def test_prompt_baseline(scene):
    batch, _ = scene
    found = PromptBaseline("box")(batch)
    assert found.shape == (2, 1, SIZE, SIZE)
    assert found.sum() == 2 * 35 * 35
    assert PromptBaseline("trimap")(batch).unique().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("prompt", ["point", "box", "mask", "trimap"])
def test_grabcut_beats_the_prompt_baseline(scene, prompt, monkeypatch):
    batch, alpha = scene
    found = GrabCut(prompt)(batch)
    assert found.shape == (2, 1, SIZE, SIZE)
    assert torch.equal(found[0], found[1])
    assert 0 <= found.min() <= found.max() <= 1
    box_error = (PromptBaseline("box")(batch)[0, 0] - alpha).abs().mean()
    assert (found[0, 0] - alpha).abs().mean() < box_error / 4
    monkeypatch.setattr(GrabCut, "max_side", 32)
    shrunk = GrabCut(prompt)(batch)
    assert shrunk.shape == found.shape
    assert (shrunk[0, 0] - alpha).abs().mean() < box_error / 2


def test_grabcut_moves_the_outline_of_a_mask_within_the_band(scene, monkeypatch):
    batch, alpha = scene
    core = cv2.erode((alpha.numpy() > 0.5).astype(np.uint8), np.ones((7, 7)))
    core[:8, :8] = 1  # a wrong part of the mask, on blue
    batch["mask"] = torch.tensor(core * 2.0 - 1).expand(2, 1, SIZE, SIZE)
    monkeypatch.setattr(GrabCut, "band", 0.06)
    found = GrabCut("mask")(batch)[0, 0]
    rest = np.s_[16:]
    assert (found - alpha)[rest].abs().mean() < (torch.tensor(core) - alpha)[rest].abs().mean() / 2
    assert found[0, 0] == 1  # farther from the outline than the band
    monkeypatch.setattr(GrabCut, "band", 0)
    still = GrabCut("mask")(batch)[0, 0]
    assert torch.equal(still, torch.tensor(core).float())


def test_grabcut_of_empty_and_full_boxes(scene):
    batch, _ = scene
    for value in (-1.0, 1.0):
        batch["bbox_mask"] = torch.full((2, 1, SIZE, SIZE), value)
        assert torch.equal(GrabCut("box")(batch), (batch["bbox_mask"] + 1) / 2)


@pytest.mark.parametrize("prompt", ["point", "box", "mask", "trimap"])
def test_guided_filter_softens_grabcut(scene, prompt, monkeypatch):
    batch, alpha = scene
    monkeypatch.setattr(GuidedGrabCut, "radius", 0.05)
    hard, soft = GrabCut(prompt)(batch), GuidedGrabCut(prompt)(batch)
    assert set(hard.unique().tolist()) == {0, 1}
    assert soft.shape == hard.shape
    assert soft.dtype == torch.float32
    assert 0 <= soft.min() <= soft.max() <= 1
    rim = (alpha > 0.1) & (alpha < 0.9)
    assert (soft[0, 0] - alpha)[rim].abs().mean() < 0.6 * (hard[0, 0] - alpha)[rim].abs().mean()
    far = (alpha == 0) | (alpha == 1)
    assert (soft[0, 0] - alpha)[far].abs().mean() < 0.02


def test_guided_filter_keeps_known_pixels(scene, monkeypatch):
    monkeypatch.setattr(GuidedGrabCut, "radius", 0.2)
    batch, _ = scene
    batch["bbox_mask"] = torch.full((2, 1, SIZE, SIZE), -1.0)
    batch["bbox_mask"][:, :, 20:45, 20:31] = 1  # cuts through the disc
    assert GuidedGrabCut("box")(batch)[batch["bbox_mask"] < 0].max() == 0
    found = GuidedGrabCut("trimap")(batch)
    assert found[batch["trimap"] == -1].max() == 0
    assert found[batch["trimap"] == 1].min() == 1


def test_closed_form(scene):
    batch, alpha = scene
    found = ClosedForm("trimap")(batch)
    assert (found[0, 0] - alpha).abs().mean() < 0.02
    batch["trimap"] = torch.zeros(2, 1, SIZE, SIZE)
    assert torch.equal(ClosedForm("trimap")(batch), torch.full((2, 1, SIZE, SIZE), 0.5))


def test_unsupported_prompts():
    with pytest.raises(PromptError, match="only trimap"):
        ClosedForm("box")
    with pytest.raises(PromptError, match="only point, box, mask, trimap"):
        GrabCut("auto")
    with pytest.raises(PromptError, match="Unknown prompt"):
        PromptBaseline("nothing")
