"""The examples run as they are, at toy size."""

import json
import runpy
import sys

import matplotlib
import pytest
import torch
from scripts import ROOT

from SDMatte.engine.train import train
from SDMatte.images.io import read_alpha
from SDMatte.samples import make_sample_set

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return tmp_path_factory.mktemp("examples") / "samples"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    def run(name, *arguments):
        path = EXAMPLES / name
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_predict(run, tmp_path):
    assert "covers" in run("predict.py", "--output", tmp_path)
    alpha = read_alpha(tmp_path / "alpha.png")
    assert alpha.max() > 0.9 and alpha.min() < 0.1
    assert (tmp_path / "cutout.png").is_file() and (tmp_path / "composite.png").is_file()


TINY = ("train.max_iter=1", "dataloader.train.batch_size=1", "dataloader.train.dataset.size=64")


def test_finetune_on_folder(run, samples, tmp_path):
    options = ["--samples", samples, "--output", tmp_path / "run"]
    small_test = ("dataloader.test.dataset.size=64", "dataloader.test.num_workers=0")
    out = run("finetune_on_folder.py", *options, *TINY, *small_test, "train.evaluations=1")
    assert "alpha of the first image" in out
    assert (tmp_path / "run/model_final.pth").is_file()


def test_score_folder(run, samples, tmp_path):
    out = run("score_folder.py", "--samples", samples, "--output", tmp_path)
    assert "official" in out and "corrected" in out and "SAD" in out
    assert (tmp_path / "official/summary.json").is_file()


def test_model_variant(samples, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    make_sample_set(samples, num_train=12, num_test=8, size=160)
    overrides = [
        f"dataloader.train.dataset.root={samples}",
        f"train.output_dir={tmp_path / 'run'}",
    ]
    train(str(EXAMPLES / "model_variant_config.py"), [*overrides, *TINY])
    checkpoint = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    tensors = checkpoint.get("model", checkpoint)
    assert tensors["correction.2.weight"].abs().max() > 0  # it was trained


def test_notebook(monkeypatch):
    notebook = json.loads((EXAMPLES / "matte.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    names = {}
    try:
        for cell in cells:
            exec("".join(cell["source"]), names)
    finally:
        names["plt"].close("all")
        matplotlib.use(backend)
    assert names["result"].alpha.shape == names["image"].shape[:2]
