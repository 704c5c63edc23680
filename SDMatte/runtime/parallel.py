"""Process many files in parallel."""

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
    """Yield the result of each task, in order.

    Args:
        work: A picklable function of one task that uses neither torch nor logging.
        tasks: The arguments.
        num_workers: Number of processes; 0 or 1: this process. None: one per core, but at most 8,
            and no more than the tasks can keep busy.
        chunk: Tasks that a process takes at a time.
    """
    if num_workers is None:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux only
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        num_workers = min(cores, 8, len(tasks) // (3 * chunk))
    if num_workers <= 1:
        yield from map(work, tasks)
        return
    # A fork starts fast and needs no importable main module. It is safe because workers use no
    # lock that a thread of the caller may hold: no torch, no logging. OpenCV's threads are ended
    # before the fork; calling setNumThreads in a forked worker instead can deadlock.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ProcessPoolExecutor(num_workers, context) as pool:
            yield from pool.map(work, tasks, chunksize=chunk)
    finally:
        cv2.setNumThreads(threads)
