"""The benchmarks of script/: all cases compute the same, compared with the plain path."""

import numpy as np
import pytest
import torch
from scripts import load_script

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
