"""The benchmark of inference: its ways compute the same, and ratios are to the plain path."""

import numpy as np
import pytest
import torch
from scripts import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmark_inference")


def test_the_plain_path_computes_what_the_predictor_does(benchmark, tmp_path):
    benchmark.build(tiny=True).save_pretrained(tmp_path)
    cpu = torch.device("cpu")
    found = {case: benchmark.measure(case, tmp_path, 64, 1, cpu) for case in ("plain", "float32")}
    assert found["plain"].alpha.std() > 0
    benchmark.check(found)
    wrong = benchmark.Measurement(1.0, 1.0, 1.0, 1.0, found["plain"].alpha + 1e-3)
    with pytest.raises(SystemExit, match="float32 differs by 1.0e-03"):
        benchmark.check({**found, "float32": wrong})


def test_ratios_are_to_the_plain_path(benchmark):
    alpha = np.zeros((4, 4), np.float32)
    found = {
        "plain": benchmark.Measurement(6.0, None, 1.0, 8.0, alpha),
        "bfloat16": benchmark.Measurement(2.0, 1.5, 0.5, 4.0, alpha + np.float32(1 / 255)),
    }
    lines = list(benchmark.table(64, found))
    assert lines[2].split()[:2] == ["plain", "6.00"]
    expected = ["bfloat16", "2.00", "3.00x", "1.50", "75%", "4.00", "0.5", "1.0000/255,", "3.9e-03"]
    assert lines[3].split() == expected
