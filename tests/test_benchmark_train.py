"""The benchmark of training: all its ways compute the same, and it says when memory is short."""

import pytest
import torch
from scripts import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmark_train")


def test_the_plain_loop_computes_what_the_trainer_does(benchmark):
    cpu = torch.device("cpu")
    cases = ("plain", "float32")
    found = {case: benchmark.measure(case, 64, 1, cpu, tiny=True) for case in cases}
    benchmark.check(found)
    assert found["plain"].loss == pytest.approx(found["float32"].loss, rel=1e-4)
    wrong = benchmark.Measurement(1.0, 1.0, found["plain"].loss * 1.01)
    with pytest.raises(SystemExit, match="float32 has a loss of"):
        benchmark.check({**found, "float32": wrong})


def test_ratios_are_to_the_plain_loop(benchmark):
    found = {
        "plain": benchmark.Measurement(3.0, 8.0, 1.0),
        "float32": benchmark.Measurement(2.0, 6.0, 1.0),
        "bfloat16": None,
    }
    lines = list(benchmark.table(256, found, limit=20.0))
    assert lines[0] == "256 x 256"
    assert lines[3].split() == ["float32", "2.000", "6.00", "1.50x", "0.75x"]
    assert lines[4].split() == ["bfloat16", "needs", "more", "than", "20.0", "GiB"]
