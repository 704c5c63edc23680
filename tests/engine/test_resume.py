"""A run that is killed and gone on with ends as one that was not, bit by bit."""

import json
import signal

import pytest
from runs import Run, assert_same_run, checkpoints, finish, records

from SDMatte.engine.hooks import trim_records

KILL = -signal.SIGKILL


def test_one_process_killed_at_every_kind_of_moment(whole, stateful, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    words = [*stateful(output), "--resume"]
    moments = [("step", 1), ("evaluation", 2), ("checkpoint", 3), ("record", 5), ("evaluation", 6)]
    for moment in moments:
        run = Run(words, log, at=moment)
        assert run.wait() == [KILL], log.read_text()
        assert not (output / "model_final.pth").exists()
    finish(words, log)
    assert sorted(line["iteration"] for line in records(whole)) == [1, 2, 3, 5, 6]
    assert_same_run(whole, output)
    assert checkpoints(output) == checkpoints(whole)

    before = (output / "model_final.pth").stat().st_mtime_ns
    assert "is complete" in finish(words, log)
    assert (output / "model_final.pth").stat().st_mtime_ns == before


def test_two_processes_of_which_one_is_killed(stateful, tmp_path):
    finish(stateful(tmp_path / "whole"), tmp_path / "whole.log", num_processes=2)
    output, log = tmp_path / "run", tmp_path / "log"
    words = [*stateful(output), "--resume"]
    for moment, rank in ((("step", 2), 1), (("checkpoint", 3), 0)):
        run = Run(words, log, at=moment, rank=rank, num_processes=2)
        codes = run.wait()
        assert codes[rank] == KILL and codes[1 - rank] == 2, log.read_text()
    assert f"Process {1 - rank} of 2 lost the others" in log.read_text()
    finish(words, log, num_processes=2)
    assert_same_run(tmp_path / "whole", output)
    assert checkpoints(output) == checkpoints(tmp_path / "whole")


@pytest.mark.parametrize("last", [-1, 3, 9])
def test_records_of_later_steps_are_taken_out(tmp_path, last):
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": step, "loss": 1.5}) for step in (1, 3, 2, 5)]
    path.write_text("\n".join([*lines, '{"iteration": 2, "lo']))
    trim_records(path, last)
    steps = [json.loads(line)["iteration"] for line in path.read_text().splitlines()]
    assert steps == [step for step in (1, 3, 2, 5) if step <= last]
    trim_records(tmp_path / "nowhere.json", last)
