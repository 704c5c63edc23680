"""The robustness command: each level is a separate test, and one plot shows all of them."""

import json
from pathlib import Path

import pytest
import torch
from models import tiny_folder, tiny_model

from SDMatte.cli.main import main
from SDMatte.evaluation.robustness import SWEEPS
from SDMatte.images.io import read_image
from SDMatte.scoring.metrics import METRICS


@pytest.fixture(autouse=True)
def _workspace(monkeypatch, tmp_path, sample_root):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.save({"model": tiny_model(0).state_dict()}, "a.pth")
    yield
    torch.set_num_threads(threads)


def run(command, *words, status=0):
    settings = [
        f"model.pretrained_model_name_or_path={tiny_folder()}",
        "model.load_weight=False",
        "model.image_prior=null",
        "dataloader.test.num_workers=0",
        "dataloader.test.dataset.size=64",
        "dataloader.test.dataset.limit=1",
        "train.device=cpu",
    ]
    assert main([command, *words, *settings]) == status


@pytest.mark.slow
def test_measures_and_draws_all_kinds(capsys, caplog):
    caplog.set_level("INFO")
    run("robustness", "a.pth", "--baseline", "grabcut", "--output", "out", "-j", "0")
    found = json.loads(Path("out/robustness.json").read_text())
    levels = {
        name: {kind: [m["level"] for m in found if (m["method"], m["kind"]) == (name, kind)]
               for kind in SWEEPS}
        for name in ("a", "grabcut")
    }  # fmt: skip
    assert levels["a"] == {kind: list(SWEEPS[kind].levels) for kind in SWEEPS}
    # GrabCut ignores the opacity.
    assert levels["grabcut"] == {**levels["a"], "opacity": []}
    assert all(list(m["scores"]) == list(METRICS) for m in found)

    # Unperturbed levels equal the plain test, perturbed ones the data set's `perturb`.
    scores = {(m["kind"], m["level"]): m["scores"] for m in found if m["method"] == "a"}
    run("test", "a.pth", "--output", "plain", "test.prompts=[box,point,mask]")
    for kind, prompt, level in (
        ("box", "box", 0.0),
        ("points", "point", 10),
        ("mask", "mask", 0.0),
    ):
        plain = json.loads(Path(f"plain/AIM-500/{prompt}/summary.json").read_text())
        assert scores[kind, level] == plain["scores"]
    assert scores["opacity", False] == scores["box", 0.0] != scores["opacity", True]
    run("test", "a.pth", "--output", "loose", "dataloader.test.dataset.perturb={box: .2}")
    loose = json.loads(Path("loose/AIM-500/box_sides+0.2/summary.json").read_text())
    assert scores["box", 0.2] == loose["scores"] != scores["box", 0.0]
    assert loose["prompt"] == "box sides+0.2"

    assert read_image("out/robustness.png").std() > 5
    printed = capsys.readouterr().out
    assert (
        "| a, 0.05 " in printed
        and "| a, wrong " in printed
        and "protocol official" in printed.lower()
    )
    assert not list(Path("out").rglob("mattes"))

    caplog.clear()
    run("robustness", "a.pth", "--baseline", "grabcut", "--output", "out")
    assert "out/a/AIM-500/box_sides-0.2: resuming, 1 of 1 images are done" in caplog.text
    assert json.loads(Path("out/robustness.json").read_text()) == found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--baseline", "closed-form", "test.prompts=[trimap]"], "supports none of the prompts"),
        (["nowhere.pth"], "Checkpoint file nowhere.pth not found."),
        (["a.pth", "--output", "a.pth/x"], "a.pth is not a folder."),
        (
            ["a.pth", "dataloader.test.dataset.perturb.box=0.2"],
            "robustness sets dataloader.test.dataset.perturb itself",
        ),
    ],
)
def test_error_messages(capsys, words, sentence):
    run("robustness", *words, status=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and sentence in error
    assert not Path("output").exists()
