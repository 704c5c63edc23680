"""The ablations at toy size: what differs between the variants, and the tables."""

import json
import sys

import pytest
from safetensors.torch import load_file
from scripts import load_script

from SDMatte.samples import make_sample_set


@pytest.fixture(scope="module")
def ablations():
    return load_script("tools/ablations.py")


def test_variants_differ_in_one_thing_and_are_tabled(ablations, tmp_path, monkeypatch, capsys):
    samples, output = tmp_path / "samples", tmp_path / "output"
    small = {"num_train": 3, "num_test": 2, "size": 64, "num_workers": 1, "progress": False}
    make_sample_set(samples, **small)
    monkeypatch.setattr(ablations, "make_sample_set", lambda *args, **kwargs: None)
    command = ["ablations.py", "--output", str(output)]
    settings = ["--steps", "1", "--size", "64", "--batch-size", "1", "--samples", str(samples)]
    monkeypatch.setattr(sys, "argv", [*command, "train", "whole", "zeros", "opacity", *settings])
    ablations.main()
    starts = {n: load_file(output / n / "start.safetensors") for n in ("whole", "zeros", "opacity")}
    differing = {
        name for name, value in starts["whole"].items() if not value.equal(starts["zeros"][name])
    }
    assert differing == {
        f"unet.{layer}_embedding.linear_1.{kind}"
        for layer in ("bbox", "point")
        for kind in ("weight", "bias")
    }
    assert all(value.equal(starts["opacity"][name]) for name, value in starts["whole"].items())

    test = ["test", "--test-samples", str(samples), "--quickstart", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", [*command, *test])
    ablations.main()
    scores = json.loads((output / "scores.json").read_text())
    assert scores.keys() == {
        "whole model",
        "coordinate layers both zero, as in the reference",
        "no opacity embedding",
        "prompt as alpha",
        "GrabCut with guided filter",
    }
    assert all(s.keys() == {f"AIM-500/{p}" for p in ablations.PROMPTS} for s in scores.values())
    assert "Variants, MSE x1000, protocol official" in capsys.readouterr().out
