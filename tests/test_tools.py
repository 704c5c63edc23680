"""The scripts of tools/ at toy size, and the images of the docs that they make."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from models import tiny_folder
from safetensors.torch import load_file
from scripts import ROOT, load_script

from SDMatte.images.io import write_image
from SDMatte.samples import make_sample_set


@pytest.mark.slow
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


@pytest.mark.slow
def test_small_model_training(tmp_path, monkeypatch, caplog):
    """Objects are made, scenes composed, and a run that was stopped by the clock is resumed."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    make_data, scenes = (load_script(f"tools/{n}.py") for n in ("make_small_data", "small_scenes"))
    monkeypatch.setattr(sys, "argv", ["", "drawn", str(tmp_path / "drawn"), "--count", "12"])
    make_data.main()
    source = ["--source", str(tmp_path / "drawn"), "--count", "2"]
    monkeypatch.setattr(sys, "argv", ["", "furry", str(tmp_path / "furry"), *source])
    make_data.main()
    cutouts = scenes.read_cutouts([tmp_path / "drawn"])
    assert {cutout.transparent for cutout in cutouts} == {True, False}
    photo = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    write_image(tmp_path / "photos" / "a.png", photo)
    maker = scenes.SceneMaker([(1, cutouts)], [photo])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = maker.draw(64, seed % 2 == 0, rng)
        assert scene.image.shape == (64, 64, 3) and scene.alpha.shape == (64, 64)
        for values in (scene.image, scene.alpha):
            assert values.dtype == np.float32 and 0 <= values.min() <= values.max() <= 1
        for prompt in ("bbox_mask", "point_mask", "mask"):
            drawn = scenes.draw_prompt(scene, prompt, rng)
            assert (
                drawn.mask.shape == (64, 64) and 0 <= drawn.coords.min() <= drawn.coords.max() <= 1
            )

    caplog.set_level("INFO")
    command = [sys.executable, str(ROOT / "tools" / "train_small.py"), "--sizes", "64:1"]
    command += ["--objects", f"1:{tmp_path / 'drawn'}", "--backgrounds", str(tmp_path / "photos")]
    command += ["--model", str(tiny_folder()), "--random", "--pixels", "8192", "--workers", "0"]
    command += ["--output", str(tmp_path / "model.safetensors")]
    for minutes in ("0.1", "0.2"):
        done = subprocess.run([*command, "--minutes", minutes], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "resumed after" in done.stderr
    tensors = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("image_prior.") for name in tensors)
    assert all(t.isfinite().all() for t in tensors.values())
