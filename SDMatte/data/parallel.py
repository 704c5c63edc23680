"""Work on many files in several processes."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2


def map_in_processes(
    work: Callable[[Any], Any], tasks: Sequence[Any], num_workers: int | None = None, chunk: int = 4
) -> Iterator[Any]:
    """Yields the result of each task, in the tasks' order.

    Args:
        work: A function of one task that can be pickled, and uses neither torch nor logging.
        tasks: What to do.
        num_workers: Processes; up to 1 works in this one. None: as many as there are cores, but
            at most 8, and no more than there is work for.
        chunk: Tasks that a process takes at a time.
    """
    if num_workers is None:
        num_workers = min(_cores(), 8, len(tasks) // (3 * chunk))
    if num_workers <= 1:
        yield from map(work, tasks)
        return
    # A fork starts at once and needs no importable main module. It is safe here because a worker
    # uses nothing that the caller's threads may hold: no torch, no logging. OpenCV's own threads
    # are ended before the fork; to call setNumThreads in a forked worker instead can hang.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ProcessPoolExecutor(num_workers, context) as pool:
            yield from pool.map(work, tasks, chunksize=chunk)
    finally:
        cv2.setNumThreads(threads)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
