"""The benchmarks of script/: all cases compute the same, compared with the plain path."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scripts import ROOT, load_script

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inference():
    return load_script("script/benchmark_inference.py")


@pytest.fixture(scope="module")
def training():
    return load_script("script/benchmark_train.py")


@pytest.fixture(scope="module")
def metrics():
    return load_script("script/benchmark_metrics.py")


# -------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "name, words, message",
    [
        ("inference", "--sizes 50", "--sizes: must be an integer of at least 64; got '50'"),
        ("inference", "--sizes 100", "--sizes: must be a multiple of 64; got 100"),
        ("inference", "--runs 0", "--runs: must be an integer of at least 1; got '0'"),
        ("inference", "--json tests", "--json: cannot write tests: it is a folder"),
        ("train", "--batches 1 0", "--batches: must be an integer of at least 1; got '0'"),
        ("train", "--steps=-1", "--steps: must be an integer of at least 1; got '-1'"),
        ("train", "--limit nan", "--limit: must be a number above 0; got 'nan'"),
        ("metrics", "--size 0", "--size: must be an integer of at least 1; got '0'"),
        ("data", "--repeats few", "--repeats: must be an integer of at least 1; got 'few'"),
        ("matte", "--number 0", "--number: must be an integer of at least 1; got '0'"),
        ("matte", "--size 40 20", "--size: must be an integer of at least 30; got '20'"),
    ],
)
def test_invalid_numbers_are_rejected(name, words, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    script = load_script(f"script/benchmark_{name}.py")
    monkeypatch.setattr("sys.argv", ["benchmark", *words.split()])
    with pytest.raises(SystemExit) as stop:
        script.parse_args()
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {message}\n")


@pytest.mark.parametrize("name", ["inference", "train"])
def test_an_unknown_device_is_rejected(name):
    command = [sys.executable, f"script/benchmark_{name}.py", "--tiny", "--device", "bogus"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: device=bogus is not available here: use cpu")


def test_measurements_are_recorded_in_a_new_folder(inference, tmp_path):
    inference.record(tmp_path / "new" / "a.jsonl", case="plain")
    assert (tmp_path / "new" / "a.jsonl").read_text() == '{"case": "plain"}\n'


# -------------------------------------------------------------------- inference


@pytest.mark.parametrize("name", ["sdmatte", "lite"])
def test_plain_inference_agrees_with_the_predictor(inference, tmp_path, name):
    inference.build(inference.MODELS[name], tiny=True).save_pretrained(tmp_path)
    found = {c: inference.measure(c, tmp_path, 64, 1, CPU) for c in ("plain", "float32")}
    assert found["plain"].alpha.std() > 0
    inference.check(found)
    wrong = inference.Measurement(1.0, 1.0, 1.0, 1.0, found["plain"].alpha + 1e-3)
    with pytest.raises(SystemExit, match="float32 differs by 1.0e-03"):
        inference.check({**found, "float32": wrong})


def test_inference_table(inference):
    alpha = np.zeros((4, 4), np.float32)
    found = {
        "plain": inference.Measurement(6.0, None, 1.0, 8.0, alpha),
        "bfloat16": inference.Measurement(2.0, 1.5, 0.5, 4.0, alpha + np.float32(1 / 255)),
        "float16": None,
    }
    inference.check(found)
    lines = list(inference.table(64, found))
    assert lines[2].split()[:2] == ["plain", "6.00"]
    expected = ["bfloat16", "2.00", "3.00x", "1.50", "75%", "4.00", "0.5", "1.0000/255,", "3.9e-03"]
    assert lines[3].split() == expected
    assert lines[4].split() == ["float16", "out", "of", "memory"]


# --------------------------------------------------------------------- training


def test_plain_training_agrees_with_the_trainer(training):
    found = {c: training.measure(c, 64, 1, CPU, tiny=True) for c in ("plain", "float32")}
    training.check(found)
    assert found["plain"].loss == pytest.approx(found["float32"].loss, rel=1e-4)
    wrong = training.Measurement(1.0, 1.0, found["plain"].loss * 1.01)
    with pytest.raises(SystemExit, match="float32 has a loss of"):
        training.check({**found, "float32": wrong})


def test_training_table(training):
    found = {
        "plain": training.Measurement(3.0, 8.0, 1.0),
        "float32": training.Measurement(2.0, 6.0, 1.0),
        "bfloat16": None,
    }
    lines = list(training.table(256, found, limit=20.0))
    assert lines[0] == "256 x 256"
    assert lines[3].split() == ["float32", "2.000", "6.00", "1.50x", "0.75x"]
    assert lines[4].split() == ["bfloat16", "needs", "more", "than", "20.0", "GiB"]


# ---------------------------------------------------------------------- metrics


def test_a_4k_image_is_scored_in_two_gigabytes(metrics):
    peak = metrics.peak_memory_4k()
    assert 2160 * 3840 * 2 / 2**20 < peak < metrics.MEMORY_LIMIT_MIB


def test_metrics_agree_with_their_definitions(metrics, capsys, monkeypatch):
    metrics.benchmark(size=160, repeats=1)
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(metrics.CASES) + 1
    monkeypatch.setattr(metrics, "direct_gradient", lambda pred, true: 1.0)
    with pytest.raises(SystemExit, match="Grad differs"):
        metrics.benchmark(size=64, repeats=1)
