"""The driver of script/check_gpu.sh, without a GPU."""

import json

import pytest
import torch
from scripts import load_script

from SDMatte.errors import OutputError


@pytest.fixture(scope="module")
def check():
    return load_script("script/check_gpu.py")


def test_a_part_that_is_cut_off_keeps_its_figures(check, tmp_path, monkeypatch):
    def commands(figures, dry):
        line = json.dumps({"case": "first", "batch": 1, "memory": None})
        write = f"open({str(figures)!r}, 'a').write({line!r} + chr(10))"
        return [["-c", write], ["-c", "print('slow', flush=True); import time; time.sleep(100)"]]

    monkeypatch.setitem(check.PARTS, "training", check.Part(1, False, commands))
    part = check.run_part("training", tmp_path, seconds=2, dry=True)
    assert part["status"] == "cut off" and part["seconds"] < 60 and "slow" in part["output"]
    assert part["figures"] == [{"case": "first", "batch": 1, "memory": None}]
    check.write_report(tmp_path, {"machine": {"card": "none"}, "parts": {"training": part}})
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "## training: cut off, " in "\n".join(lines)
    assert "| first | 1 | out of memory |" in lines
    assert json.loads((tmp_path / "report.json").read_text())["parts"]["training"] == part


def test_a_failing_check_fails_its_part(check, tmp_path, monkeypatch):
    output = "tests/gpu/test_cuda.py::test_one[a-b] PASSED [ 50%]\ntests/x.py::test_two FAILED\n"
    commands = [["-c", f"print({output!r}); raise SystemExit(1)"]]
    monkeypatch.setitem(check.PARTS, "tests", check.Part(1, True, lambda *_: commands))
    part = check.run_part("tests", tmp_path, seconds=60, dry=True)
    assert part["status"] == "failed"
    results = [{"test": "test_one[a-b]", "result": "passed"}]
    assert part["figures"] == [*results, {"test": "test_two", "result": "failed"}]


def test_needed_workers(check):
    rates = [{"loader_workers": n, "samples_per_second": 5.0 * n} for n in (1, 2, 4)]
    cases = [{"case": "plain", "batch": 1, "samples_per_second": 3.0}, {"case": "x", "batch": 4}]
    assert check.needed_workers(rates + cases)["workers_needed"] == 1
    cases.append({"case": "bfloat16", "batch": 8, "samples_per_second": 12.0})
    expected = {"case": "bfloat16", "batch": 8, "workers_needed": 4}
    assert check.needed_workers(rates + cases) == expected
    assert check.needed_workers(rates[:2] + cases)["workers_needed"] == "more than 2"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported_in_one_line(check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check_gpu.py", str(tmp_path / "out")])
    assert check.main(check.parse_args()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("No NVIDIA GPU found. With one, this runs tests, inference, training,")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("figures", [[], [{"case": "plain"}]])
def test_a_part_that_is_cut_off_before_its_first_figure_fails(
    check, tmp_path, monkeypatch, figures
):
    part = {"status": "cut off", "seconds": 1.0, "figures": figures, "output": ""}
    monkeypatch.setattr(check, "run_part", lambda *_: part)
    command = ["check_gpu.py", "--dry-run", "--only", "inference", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    assert check.main(check.parse_args()) == (0 if figures else 1)


@pytest.mark.parametrize("minutes", ["-5", "0", "nan", "inf", "many"])
def test_minutes_are_a_number_above_zero(check, monkeypatch, capsys, minutes):
    monkeypatch.setattr("sys.argv", ["check_gpu.py", f"--minutes={minutes}"])
    with pytest.raises(SystemExit) as stop:
        check.parse_args()
    assert stop.value.code == 2
    expected = f"argument --minutes: must be a number above 0; got '{minutes}'\n"
    assert capsys.readouterr().err.endswith(expected)


def test_an_output_that_is_a_file_is_refused(check, tmp_path, monkeypatch):
    (tmp_path / "out").touch()
    monkeypatch.setattr("sys.argv", ["check_gpu.py", "--dry-run", str(tmp_path / "out")])
    with pytest.raises(OutputError, match="out is not a folder"):
        check.main(check.parse_args())
