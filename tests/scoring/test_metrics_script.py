"""What script/benchmark_metrics.py promises, but for the times."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "script" / "benchmark_metrics.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_metrics", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_4k_picture_is_scored_in_two_gigabytes(script):
    peak = script.peak_memory_4k()
    assert 2160 * 3840 * 2 / 2**20 < peak < script.MEMORY_LIMIT_MIB


def test_the_comparison_s_values_agree(script, capsys):
    script.benchmark(size=160, repeats=1)  # ends the process where they do not
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(script.CASES) + 1


def test_the_comparison_notices_a_difference(script, monkeypatch):
    monkeypatch.setattr(script, "direct_gradient", lambda pred, true: 1.0)
    with pytest.raises(SystemExit, match="Grad differs"):
        script.benchmark(size=64, repeats=1)
