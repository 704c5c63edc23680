"""Training and test from end to end at toy size: data, processes and commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_folder
from runs import finish

from SDMatte.cli.main import main
from SDMatte.engine.train import train
from SDMatte.images.io import read_alpha
from SDMatte.modeling.weights import read_tensors

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "SDMatte_small.py")


@pytest.fixture(autouse=True)
def environment(monkeypatch, sample_root):
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))


TINY = [
    f"model.pretrained_model_name_or_path={tiny_folder()}",
    "model.load_weight=False",
    "train.init_checkpoint=''",
    "model.image_prior=null",
]


def settings(output: Path, *more: str) -> list[str]:
    return [
        f"train.output_dir={output}",
        "train.max_iter=4",
        "train.log_period=1",
        "train.checkpoints=2",
        "train.evaluations=1",
        "train.num_images=2",
        "dataloader.train.batch_size=2",
        "dataloader.train.dataset.size=64",
        "dataloader.test.dataset.size=64",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        *more,
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sample_root) -> Path:
    """A run of four steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDMATTE_DATA_ROOT", str(sample_root))
        output = tmp_path_factory.mktemp("run") / "run"
        train(CONFIG, settings(output))
    return output


def records(output: Path) -> list[dict]:
    lines = (output / "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_files_of_a_run(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "curves.png", "model_final.pth"} <= names
    assert "model_0000001.pth" in names and any(n.startswith("events.out") for n in names)
    assert not any(name.endswith(".tmp") for name in names)
    last = {k: v for record in records(finished) for k, v in record.items()}
    steps = [record["iteration"] for record in records(finished) if "total_loss" in record]
    assert steps[:4] == [0, 1, 2, 3] and np.isfinite(last["total_loss"])
    for key in ("unknown_l1_loss", "known_lap_loss", "lr", "AIM-500/box/MSE", "AIM-500/box/Conn"):
        assert key in last, key
    log = (finished / "log.txt").read_text()
    assert "Done. To test: bash script/test.sh" in log


def test_training_changes_only_the_unet_and_the_image_prior(finished):
    first = read_tensors(finished / "model_0000001.pth")
    last = read_tensors(finished / "model_final.pth")
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    assert changed and all(name.startswith(("unet.", "image_prior.")) for name in changed)
    assert "unet.conv_in.weight" in changed and "unet.aux_conv_in.weight" in changed


@pytest.mark.parametrize(
    "more",
    [
        ["train.accumulate=2", "train.gradient_checkpointing=True"],
        ["train.amp.enabled=True"],
        ["model.aux_input=point_mask", "train.clip_grad_norm=0.1"],
    ],
    ids=["accumulate", "amp", "points"],
)
def test_variants_of_training(tmp_path, more):
    train(CONFIG, settings(tmp_path, *TINY, "train.max_iter=1", "train.evaluations=0", *more))
    assert np.isfinite(records(tmp_path)[-1]["total_loss"])


@pytest.mark.slow
def test_two_processes_train_and_test(sample_root, tmp_path):
    words = settings(tmp_path, *TINY, "train.max_iter=2", "dataloader.train.batch_size=1")
    words += [f"dataloader.train.dataset.root={sample_root}"]
    command = [sys.executable, "-m", "SDMatte", "train", CONFIG, "--num-processes", "2", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]

    def test_words(name):
        outputs = ["--output", f"{tmp_path / name}", "--save-prompts", f"{tmp_path / name}.json"]
        return [str(tmp_path / "model_final.pth"), *outputs, *words]

    assert main(["test", CONFIG, *test_words("one")]) == 0
    log = tmp_path / "two.log"
    finish(test_words("two"), log, num_processes=2, command=("test", CONFIG))
    scores = [
        json.loads((tmp_path / n / "AIM-500" / "box" / "summary.json").read_text())["scores"]
        for n in ("one", "two")
    ]
    # Other batches round differently, and the official protocol truncates to 8 bits.
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_test_command(finished, sample_root, tmp_path, capsys):
    words = ["test.prompts=[box,point,mask]", "test.protocol=corrected"]
    words += [w for w in settings(finished) if w.startswith("dataloader")]
    checkpoint = str(finished / "model_final.pth")
    assert main(["test", CONFIG, checkpoint, "--output", str(tmp_path), *words]) == 0
    printed = capsys.readouterr().out
    assert "protocol corrected" in printed
    for prompt in ("box", "point", "mask"):
        assert f"AIM-500/{prompt}" in printed
        folder = tmp_path / "AIM-500" / prompt
        assert {"scores.csv", "summary.json", "summary.md"} <= {p.name for p in folder.iterdir()}
        truths = sorted((sample_root / "AIM-500" / "mask").iterdir())
        assert [p.name for p in sorted((folder / "mattes").iterdir())] == [p.name for p in truths]
        for truth in truths:
            assert read_alpha(folder / "mattes" / truth.name).shape == read_alpha(truth).shape


def own_pair(sample_root, holdout=""):
    images, alphas = sample_root / "AIM-500" / "original", sample_root / "AIM-500" / "mask"
    pair = f"{{image: {images}, alpha: {alphas}, name: mine{holdout}}}"
    return f"dataloader.train.dataset.names=[{pair}]"


@pytest.fixture
def no_sets(monkeypatch, tmp_path):
    """Hide all known data sets, as on a machine without the sample set."""
    monkeypatch.delenv("SDMATTE_DATA_ROOT")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_held_out_images_are_tested_during_the_run_and_after_it(
    no_sets, sample_root, tmp_path, capsys, caplog
):
    output = tmp_path / "run"
    words = settings(output, own_pair(sample_root, ", holdout: 1"), *TINY, "train.max_iter=1")
    assert main(["train", CONFIG, *words, "train.best_metric=mine/box/SAD"]) == 0
    (warning,) = (r.message for r in caplog.records if "AIM-500" in r.message)
    assert "dataloader.test.dataset.names=[{image: DIR" in warning
    assert "mine/box/SAD" in records(output)[-1] and (output / "model_best.pth").is_file()
    checkpoint = str(output / "model_final.pth")
    for where, given in (("a", [str(output / "config.yaml")]), ("b", [CONFIG])):
        given += [checkpoint, "--output", where, *(words if given == [CONFIG] else [])]
        assert main(["test", *given]) == 0
        summary = json.loads((tmp_path / where / "mine/box/summary.json").read_text())
        assert len(list((tmp_path / where / "mine/box/mattes").iterdir())) == 1
        assert summary["dataset"] == "mine"
        assert not (tmp_path / where / "AIM-500").exists()
    # Test sets that are named replace it.
    named = own_pair(sample_root).replace("train", "test").replace("mine", "other")
    assert main(["test", CONFIG, checkpoint, "--output", "c", *words, named]) == 0
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["other"]


def test_only_optional_sets_are_left_out(no_sets, sample_root, tmp_path, capsys):
    words = settings(tmp_path / "run", own_pair(sample_root), *TINY)
    named = ["dataloader.test.dataset.names=[AIM-500]"]
    assert main(["train", CONFIG, *words, *named]) == 2
    assert "AIM-500: data root data/samples not found" in capsys.readouterr().err
    assert main(["train", CONFIG, *words, "train.best_metric=AIM-500/box/SAD"]) == 2
    assert "'AIM-500/box/SAD', but there is no test set. Add a" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["train", CONFIG, *words, "train.max_iter=1"]) == 0
    assert main(["test", CONFIG, str(tmp_path / "run/model_final.pth"), *words]) == 2
    assert "No test set. Add a test set with" in capsys.readouterr().err


def test_data_commands_know_held_out_images(no_sets, sample_root, tmp_path, capsys):
    pair = own_pair(sample_root, ", holdout: 1").partition("=")[2][1:-1]
    assert main(["data", "list", pair]) == 0
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines() if "mine" in line]
    assert rows == [["mine", "training", "yes", "3"], ["mine", "test", "yes", "1"]]
    config = [CONFIG, own_pair(sample_root, ", holdout: 1")]
    assert main(["data", "check", *config, "-j", "0"]) == 0
    printed = capsys.readouterr().out
    assert "mine (training): 3 samples" in printed and "mine (test): 1 samples" in printed
    assert "no alpha:" not in printed and printed.endswith("Training can start.\n")
    sample = ["data", "sample", *config, "--part", "test", "--output", "s.png"]
    assert main([*sample, "dataloader.test.dataset.size=64"]) == 0
