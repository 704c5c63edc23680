"""The scripts of tools/ at toy size, and the images of the docs that they make."""

import json
import re
import sys

import pytest
from safetensors.torch import load_file
from scripts import ROOT, load_script

from SDMatte.samples import make_sample_set


def test_ablations(tmp_path, monkeypatch, capsys):
    ablations = load_script("tools/ablations.py")
    samples, output = tmp_path / "samples", tmp_path / "output"
    make_sample_set(samples, num_train=3, num_test=2, size=64, num_workers=1, progress=False)
    monkeypatch.setattr(ablations, "make_sample_set", lambda *args, **kwargs: None)
    monkeypatch.setenv("SDMATTE_DATA_ROOT", "")  # the tool sets it; the test restores it
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


def test_the_guide_prints_the_commands_behind_its_images():
    text = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    text = " ".join(text.replace("\\\n", " ").split())
    for command in load_script("tools/make_docs_images.py").COMMANDS:
        assert command in text


@pytest.mark.parametrize("page", ["README.md", *sorted(p.name for p in ROOT.glob("docs/*.md"))])
def test_images_of_pages_exist_and_are_small(page):
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        assert 0 < (path.parent / name).stat().st_size < 200_000
