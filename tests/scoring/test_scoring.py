"""Workers: in turn, in a thread, in processes, and when one of them is gone."""

import operator
import os
import signal
import subprocess
import sys
import threading

import pytest

from SDMatte.errors import ConfigError, DataError
from SDMatte.scoring.workers import Workers


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_outcomes_come_in_order_and_few_jobs_are_held(num_workers):
    outcomes = []
    workers = Workers(num_workers, outcomes.append)
    for i in range(12):
        workers.submit(operator.mul, i, 2)
        assert i + 1 - len(outcomes) <= 2 * num_workers
    workers.finish()
    assert outcomes == [2 * i for i in range(12)]
    workers.submit(operator.mul, 50, 2)  # they can be used again
    workers.finish()
    assert outcomes[-1] == 100


def test_where_the_work_is_done():
    found = []
    for num_workers in (0, 1, 2):
        workers = Workers(num_workers, found.append)
        workers.submit(os.getpid)
        workers.submit(threading.get_ident)
        workers.submit(signal.getsignal, signal.SIGINT)
        workers.finish()
    here, own, _, beside_here, beside_own, _, elsewhere, _, on_interrupt = found
    assert here == beside_here == os.getpid() != elsewhere
    assert own == threading.get_ident() != beside_own
    assert on_interrupt is signal.SIG_IGN  # the other process sees to that


def test_a_job_s_error_arrives():
    for num_workers in (0, 1):
        workers = Workers(num_workers, print)
        with pytest.raises(ZeroDivisionError):
            workers.submit(operator.truediv, 1, 0)
            workers.finish()
        workers.close()


def test_a_process_that_is_ended_is_a_sentence():
    workers = Workers(2, print)
    workers.submit(os._exit, 3)
    with pytest.raises(DataError, match="fewer workers"):
        workers.finish()
    workers.close()


def test_there_is_no_negative_number_of_workers():
    with pytest.raises(ConfigError, match="-1 workers"):
        Workers(-1, print)


def test_workers_need_no_torch():
    code = "import SDMatte.scoring.workers, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
