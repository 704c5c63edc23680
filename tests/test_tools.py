"""The scripts of tools/ at toy size, and the images that they make for the docs."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from models import tiny_folder
from safetensors.torch import load_file, save_file
from scripts import ROOT, load_script

from SDMatte.images.io import write_image


@pytest.mark.slow
def test_ablations(tmp_path):
    """Train the shipped model further without parts and with a random encoder, and score both."""
    rgba = np.zeros((60, 60, 4), np.uint8)
    cv2.circle(rgba, (30, 30), 25, (30, 90, 200, 255), -1)
    photo = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    for part in ("opaque", "transparent"):
        (tmp_path / "objects" / part).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "objects" / part / "a.png"), rgba)
    write_image(tmp_path / "photos" / "a.png", photo)
    write_image(tmp_path / "real" / "SET" / "image" / "a.png", photo)
    write_image(tmp_path / "real" / "SET" / "alpha" / "a.png", cv2.resize(rgba[..., 3], (90, 80)))
    shipped = load_file(ROOT / "SDMatte" / "assets" / "small" / "model.safetensors")
    bare = {n: t for n, t in shipped.items() if not n.startswith("image_prior.")}
    save_file(bare, tmp_path / "bare.safetensors")

    output = tmp_path / "output"
    command = [sys.executable, str(ROOT / "tools" / "ablations.py"), "--output", str(output)]
    scenes = ["--objects", f"1:{tmp_path / 'objects'}", "--backgrounds", str(tmp_path / "photos")]
    short = [*scenes, "--seeds", "3", "--minutes", "0.05", "--sizes", "64:1", "--pixels", "4096"]
    start = ["--start", str(tmp_path / "bare.safetensors"), "--photos", str(tmp_path / "photos")]
    subprocess.run([*command, "train", "--variants", "whole", "masking", *short], check=True)
    subprocess.run([*command, "train", "--variants", "random", *short, *start], check=True)
    starts = load_file(output / "start-random-3.safetensors")
    assert all(starts[n].float().equal(t.float()) for n, t in bare.items())
    statistics = [t for n, t in starts.items() if n.endswith("running_var")]
    assert statistics and all((t != 1).all() and t.isfinite().all() for t in statistics)

    test = ["test", *scenes, "--count", "1", "--size", "64", "--real", str(tmp_path / "real")]
    subprocess.run([*command, *test], check=True)
    table = (output / "scores.md").read_text()
    assert "alone" in table and "among others" in table and "transparent" in table
    for row in ("as shipped", "random encoder", "whole model", "no masked self-attention"):
        assert len(re.findall(rf"{row} *\|(?: *[0-9.]+ *\|){{4}}", table)) == 4, table


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
    """Objects are made, scenes are composed, and a run that ran out of time is resumed."""
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
