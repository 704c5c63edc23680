"""Jobs in the calling thread, in a second thread and in processes."""

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
def test_results_are_ordered_and_few_jobs_are_pending(num_workers):
    outcomes = []
    workers = Workers(num_workers, outcomes.append)
    for i in range(12):
        workers.submit(operator.mul, i, 2)
        assert i + 1 - len(outcomes) <= 2 * num_workers
    workers.finish()
    assert outcomes == [2 * i for i in range(12)]
    workers.submit(operator.mul, 50, 2)  # they can be reused
    workers.finish()
    assert outcomes[-1] == 100


def test_where_jobs_run():
    found = []
    for num_workers in (0, 1, 2):
        with Workers(num_workers, found.append) as workers:
            workers.submit(os.getpid)
            workers.submit(threading.get_ident)
            workers.submit(signal.getsignal, signal.SIGINT)
    caller, main_thread, _, in_thread, second_thread, _, in_process, _, on_interrupt = found
    assert caller == in_thread == os.getpid() != in_process
    assert main_thread == threading.get_ident() != second_thread
    assert on_interrupt is signal.SIG_IGN  # the parent process handles it


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_jobs_are_raised(num_workers):
    with pytest.raises(ZeroDivisionError), Workers(num_workers, print) as workers:
        workers.submit(operator.truediv, 1, 0)


def test_killed_process():
    with pytest.raises(DataError, match="fewer workers"), Workers(2, print) as workers:
        workers.submit(os._exit, 3)


def test_negative_number_of_workers():
    with pytest.raises(ConfigError, match="got -1"):
        Workers(-1, print)


def test_worker_processes_do_not_import_torch():
    code = "import SDMatte.scoring.workers, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
