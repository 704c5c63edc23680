"""Post-process, write and score single mattes, in this process or in parallel.

This module does not import torch, so worker processes start quickly.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from SDMatte.errors import ConfigError, DataError, OutputError
from SDMatte.images.io import read_alpha, write_image
from SDMatte.images.resize import resize_alpha
from SDMatte.runtime.files import stem_key
from SDMatte.runtime.signals import end_with_parent
from SDMatte.scoring.protocols import Protocol, read_truth, score_pair
from SDMatte.scoring.results import MATTES, ImageScore


@dataclass(frozen=True)
class Target:
    """What a matte is scored against."""

    alpha_path: str  # the true alpha; its stem is the name of the image
    trimap_path: str | None = None  # only its unknown pixels count; None: all do; "": missing
    image_path: str = ""  # for reports; "" if unknown

    @property
    def name(self) -> str:
        """Name of the image."""
        return stem_key(self.alpha_path)


@dataclass(frozen=True)
class Scorer:
    """Resize, write and score mattes under one protocol.

    Without metrics, mattes to be scored later by ``corrected`` are written with 16 bits.
    """

    protocol: Protocol
    folder: Path | None = None  # mattes are written to its mattes/ as PNG; None: nowhere
    with_metrics: bool = True

    def score_prediction(
        self, target: Target, pred: np.ndarray, hw: tuple[int, int]
    ) -> ImageScore | str:
        """Resize, write and score a model's prediction.

        Args:
            target: What it is scored against.
            pred: The model's alpha ``[h, w]``, floating point in [0, 1].
            hw: Height and width of the image.

        Returns:
            The score, or an error message.
        """
        try:
            matte, pred_path = resize_alpha(pred, hw, self.protocol.eight_bit), ""
            if self.folder is not None:
                stored = matte
                if not (self.with_metrics or self.protocol.eight_bit):
                    stored = np.rint(matte * np.float32(65535)).astype(np.uint16)
                pred_path = str(write_image(self.folder / MATTES / f"{target.name}.png", stored))
            return self._score(target, matte, pred_path, check=False)
        except (ValueError, OutputError) as error:
            return f"{target.alpha_path}: {error}"

    def score_file(self, target: Target, matte_path: str | Path) -> ImageScore | str:
        """Score a matte on disk; without metrics, only check that it can be scored.

        Returns:
            The score, or an error message.
        """
        try:
            matte = self.protocol.as_scored(read_alpha(matte_path))
            return self._score(target, matte, str(matte_path), check=True)
        except DataError as error:
            return f"{matte_path}: {error}"

    def _score(self, target: Target, matte: np.ndarray, path: str, check: bool) -> ImageScore:
        scores: dict[str, float] = {}
        if self.with_metrics or check:
            if target.trimap_path == "":
                raise DataError("No trimap, but only its unknown pixels count.")
            truth = read_truth(matte, target.alpha_path, target.trimap_path, self.protocol)
            if self.with_metrics:
                scores = score_pair(matte, *truth, self.protocol.name)
        height, width = matte.shape
        return ImageScore(
            target.name, height, width, scores, target.alpha_path, path, target.image_path
        )


class Workers(AbstractContextManager):
    """Run jobs in a thread or in processes and collect their results in order.

    At most two jobs per worker are pending, so memory does not grow with the data set.
    As a context manager, it finishes all jobs on exit, or drops them after an error.

    Args:
        num_workers: 0: run jobs in the calling thread; 1: in a second thread; more: in that many
            spawned processes, which import this package without torch.
        collect: Called with the result of each job, in the order of submission.

    Raises:
        ConfigError: The number is negative.
    """

    def __init__(self, num_workers: int, collect: Callable[[Any], None]) -> None:
        if num_workers < 0:
            raise ConfigError(f"num_workers must be at least 0; got {num_workers}.")
        self.num_workers = num_workers
        self._collect = collect
        self._pool: Executor | None = None
        self._pending: deque[Future] = deque()

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Finish all jobs, or drop them after an error."""
        try:
            if error_type is None:
                self.finish()
        finally:
            self.close()

    def submit(self, job: Callable[..., Any], *args: Any) -> None:
        """Submit a job; wait if too many are pending.

        Raises:
            DataError: A worker process was killed.
        """
        if self.num_workers == 0:
            self._collect(job(*args))
            return
        if self._pool is None and self.num_workers == 1:
            self._pool = ThreadPoolExecutor(1)
        elif self._pool is None:
            # A fork would copy torch's threads and devices.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.num_workers, context, initializer=_init_worker)
        with _killed_as_data_error():
            self._pending.append(self._pool.submit(job, *args))
        self._collect_until(2 * self.num_workers)

    def finish(self) -> None:
        """Wait for all jobs and stop the workers; later jobs start new ones.

        Raises:
            DataError: A worker process was killed.
        """
        self._collect_until(0)
        self.close()

    def close(self) -> None:
        """Stop the workers and drop the jobs that have not started."""
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _collect_until(self, number: int) -> None:
        while len(self._pending) > number:
            with _killed_as_data_error():
                outcome = self._pending.popleft().result()
            self._collect(outcome)


@contextmanager
def _killed_as_data_error() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            "A scoring process was killed, possibly for lack of memory. Use fewer workers."
        ) from error


def _init_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it
    end_with_parent()
