"""``train --dry-run`` describes a training and writes nothing."""

import re

import pytest
import torch
from tiny_runs import CONFIG, TinyRun, tiny_settings

from SDMatte.cli.main import main
from SDMatte.engine.dry_run import time_step


@pytest.fixture(autouse=True)
def environment(monkeypatch, sample_root, tmp_path):
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))
    monkeypatch.chdir(tmp_path)


def dry_run(capsys, *words):
    status = main(["train", CONFIG, *tiny_settings(*words), "--dry-run"])
    return status, capsys.readouterr()


def rows(text):
    """Return the lines of each row by the name in the first column."""
    found, name = {}, ""
    for line in text.splitlines()[:-1]:
        name = line[:14].strip() or name
        found.setdefault(name, []).append(line[14:])
    return found


def test_describes_the_run_and_writes_nothing(capsys, sample_root, tmp_path):
    before = sorted(sample_root.rglob("*"))
    words = ("train.epochs=4", "train.checkpoints=2", "train.evaluations=2")
    words += ("train.accumulate=2", "train.lora.enabled=True")
    status, captured = dry_run(capsys, *words, "--num-processes", "2")
    assert status == 0
    report = rows(captured.out)
    assert captured.out.splitlines()[-1] == "Dry run: nothing was written."
    assert list(tmp_path.iterdir()) == [] and sorted(sample_root.rglob("*")) == before

    total, trained = re.match(r"unet: ([\d,]+) parameters, ([\d,]+) ", report["model"][1]).groups()
    assert 0 < int(trained.replace(",", "")) < int(total.replace(",", ""))  # LoRA
    assert report["model"][2].endswith(" 0 trainable")  # the autoencoder
    assert report["data"] == ["Composition-1K: 18 samples"]
    assert report["step"] == ["batch 2 x accumulate 2 x processes 2 = 8 images of 64 x 64"]
    assert report["length"] == ["9 steps: 4.00 epochs of 18 samples"]
    assert report["evaluations"] == [
        "every 5 steps and after the last; prompts: box",
        "AIM-500: 4 images of 64 x 64",
    ]
    assert report["checkpoints"][0].startswith("every 5 steps in ")
    assert report["device"][0].startswith("cpu") and "of 2" in report["device"][0]
    seconds = float(re.match(r"([\d.]+) s per step, ", report["time"][0]).group(1))
    hours, minutes, rest = re.match(r"(\d+):(\d+):(\d+) for all", report["time"][1]).groups()
    all_steps = int(hours) * 3600 + int(minutes) * 60 + int(rest)
    assert all_steps == pytest.approx(seconds * 9, abs=1)
    assert float(report["memory"][0].split()[0]) > 0.1


def test_timing_does_not_change_weights():
    run = TinyRun.build()
    before = {name: value.clone() for name, value in run.task.model.state_dict().items()}
    assert time_step(run.trainer).seconds > 0
    after = run.task.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_errors_of_the_training_are_found(capsys):
    status, captured = dry_run(capsys, "train.init_checkpoint=nothing.pth", "train.evaluations=0")
    assert status == 2 and captured.out == ""
    assert "Checkpoint file nothing.pth not found" in captured.err


def test_only_the_main_process_prints(capsys, monkeypatch):
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    status, captured = dry_run(capsys)
    assert status == 0 and captured.out == ""
