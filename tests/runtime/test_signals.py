"""A signal stops a run between two steps in all processes, after saving a checkpoint."""

import signal
import subprocess
import sys

import pytest
from runs import Run, assert_same_run, checkpoints, finish, interrupt, records, terminate

from SDMatte.engine.output import describe_saved
from SDMatte.runtime.signals import StopRequest


@pytest.mark.slow
def test_a_run_stopped_twice_equals_an_uninterrupted_one(whole, stateful, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    words = [*stateful(output), "--resume"]
    # The state before an evaluation is saved, so the run ends immediately.
    assert Run(words, log, at=("evaluation", 2), action=interrupt).wait() == [130]
    assert "Stopped by SIGINT after step 3 of 6; everything is saved in" in last_line(log)
    assert not [line for line in records(output) if "AIM-500/box/SAD" in line]
    assert Run(words, log, at=("before step", 4), action=terminate).wait() == [143]
    assert "Stopped by SIGTERM after step 5 of 6; everything is saved in" in last_line(log)
    assert (output / "last_checkpoint").read_text() == "model_0000004.pth"
    assert "Traceback" not in log.read_text()
    finish(words, log)
    assert_same_run(whole, output)


def last_line(log):
    return log.read_text().splitlines()[-1]


def test_processes_agree_on_the_step(stateful, tmp_path):
    log = tmp_path / "log"
    run = Run(stateful(tmp_path), log, ("before step", 0), terminate, rank=1, num_processes=2)
    assert run.wait() == [143, 143], log.read_text()
    assert (
        log.read_text().count("\nStopped by SIGTERM after step 1 of 6; everything is saved in") == 2
    )
    assert checkpoints(tmp_path) == ["model_0000000.pth"]


def test_only_the_first_signal_counts_and_handlers_are_restored():
    before = signal.getsignal(signal.SIGUSR1)
    stop = StopRequest()
    left = []
    with stop.listen():
        signal.raise_signal(signal.SIGUSR1)
        assert stop.received == signal.SIGUSR1
        stop.leave = left.append
        signal.raise_signal(signal.SIGTERM)  # immediately: the same signal, forwarded
    assert stop.received == signal.SIGUSR1 and not left
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("late", [False, True])
def test_a_later_signal_ends_the_process(late):
    code = (
        "import signal; from SDMatte.runtime.signals import StopRequest\n"
        "stop = StopRequest()\n"
        "with stop.listen():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        f"    stop._since -= {2 * late}\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code])
    assert done.returncode == (-signal.SIGTERM if late else 0)


def test_saved_state_is_described(tmp_path):
    assert describe_saved(tmp_path) == f"no checkpoint was saved in {tmp_path}"
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth")
    assert f"the last checkpoint is {tmp_path}/model_0000004.pth" in describe_saved(tmp_path)
