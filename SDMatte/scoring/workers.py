"""Finishing, writing and scoring single mattes, in this process or beside it.

Nothing here needs torch, so that a worker process starts in a moment.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from SDMatte.errors import ConfigError, DataError, OutputError
from SDMatte.images.io import read_alpha, write_image
from SDMatte.runtime.files import stem_key
from SDMatte.runtime.processes import end_with_parent
from SDMatte.scoring.protocols import (
    Protocol,
    as_scored,
    finish_alpha,
    read_partners,
    score_pair,
)
from SDMatte.scoring.results import MATTES, ImageScore


@dataclass(frozen=True)
class Target:
    """What a matte is scored against.

    Attributes:
        alpha_path: The truth; its stem is the picture's name.
        trimap_path: The trimap whose unknown pixels count; "": it has none; None: all count.
        image_path: The picture, for reports; "" if unknown.
    """

    alpha_path: str
    trimap_path: str | None = None
    image_path: str = ""

    @property
    def name(self) -> str:
        """The picture's name."""
        return stem_key(self.alpha_path)


@dataclass(frozen=True)
class Scorer:
    """How the mattes of a test are finished, written and scored.

    Attributes:
        protocol: How.
        folder: Its ``mattes/`` gets the mattes as PNG; None: they are not written.
        with_scores: Whether to score now. If not, what ``corrected`` is to score later is
            written with 16 bits, so that next to nothing is lost.
    """

    protocol: Protocol
    folder: Path | None = None
    with_scores: bool = True

    def prediction(self, target: Target, pred: np.ndarray, hw: tuple[int, int]) -> ImageScore | str:
        """Finishes, writes and scores what a model gave.

        Args:
            target: What it belongs to.
            pred: The model's alpha ``[h, w]``, floating in [0, 1].
            hw: Height and width of the picture.

        Returns:
            The score, or a sentence where that cannot be done.
        """
        pred_path = ""
        try:
            matte = finish_alpha(pred, hw, self.protocol)
            if self.folder is not None:
                path = self.folder / MATTES / f"{target.name}.png"
                pred_path = str(write_image(path, self._as_file(matte)))
            scores = self._scores(matte, target) if self.with_scores else {}
        except (ValueError, OutputError) as error:
            return f"{target.alpha_path}: {error}"
        return _score(target, matte, scores, pred_path)

    def file(
        self, target: Target, matte_path: str | Path, with_metrics: bool = True
    ) -> ImageScore | str:
        """Scores a matte that is on disk.

        Args:
            target: What it belongs to.
            matte_path: The matte.
            with_metrics: False: only look whether it could be scored.

        Returns:
            The score, or a sentence where that cannot be done.
        """
        try:
            matte = as_scored(read_alpha(matte_path), self.protocol)
            scores = self._scores(matte, target, with_metrics)
        except DataError as error:
            return f"{matte_path}: {error}"
        return _score(target, matte, scores, str(matte_path))

    def _scores(self, matte: np.ndarray, target: Target, with_metrics: bool = True) -> dict:
        if target.trimap_path == "":
            raise DataError("It has no trimap, but only the unknown pixels are to count.")
        true, trimap = read_partners(matte, target.alpha_path, target.trimap_path, self.protocol)
        return score_pair(matte, true, trimap, self.protocol) if with_metrics else {}

    def _as_file(self, matte: np.ndarray) -> np.ndarray:
        if self.with_scores or self.protocol.eight_bit:
            return matte
        return np.rint(matte * np.float32(65535)).astype(np.uint16)  # [0, 1] -> [0, 65535]


def _score(
    target: Target, matte: np.ndarray, scores: dict[str, float], pred_path: str
) -> ImageScore:
    height, width = matte.shape
    return ImageScore(
        target.name, height, width, scores, target.alpha_path, pred_path, target.image_path
    )


class Workers:
    """Does jobs in turn, in a thread or in processes, and hands on what comes out, in order.

    It never holds more than a few jobs, so that a set of any size needs the memory of a few
    pictures.
    """

    def __init__(self, num_workers: int, collect: Callable[[Any], None]) -> None:
        """Prepares; nothing is started before the first job.

        Args:
            num_workers: 0: jobs are done at once, by the caller; 1: in a thread beside it; more:
                in so many processes. Those import this package anew, without torch.
            collect: Called with the result of each job, in the order of the jobs.

        Raises:
            ConfigError: The number is negative.
        """
        if num_workers < 0:
            raise ConfigError(f"There cannot be {num_workers} workers.")
        self.num_workers = num_workers
        self._collect = collect
        self._pool: Executor | None = None
        self._pending: deque[Future] = deque()

    def submit(self, job: Callable[..., Any], *args: Any) -> None:
        """Takes a job, after waiting for others if there are too many.

        Raises:
            DataError: A worker process was ended from outside.
        """
        if self.num_workers == 0:
            self._collect(job(*args))
            return
        self._pool = self._pool or self._start()
        self._pending.append(self._guarded(self._pool.submit, job, *args))
        while len(self._pending) > 2 * self.num_workers:
            self._take()

    def finish(self) -> None:
        """Waits for all jobs, and ends the workers.

        Raises:
            DataError: A worker process was ended from outside.
        """
        while self._pending:
            self._take()
        self.close()

    def close(self) -> None:
        """Ends the workers; jobs that have not begun are dropped."""
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _start(self) -> Executor:
        if self.num_workers == 1:
            return ThreadPoolExecutor(1)
        # A fork would copy whatever threads and devices of torch are running here.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.num_workers, context, initializer=_start_worker)

    def _take(self) -> None:
        self._collect(self._guarded(self._pending.popleft().result))

    @staticmethod
    def _guarded(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except BrokenProcessPool as error:
            raise DataError(
                "A scoring process was ended, maybe for lack of memory: ask for fewer workers."
            ) from error


def _start_worker() -> None:
    """Keeps a worker to one core, and lets it end when the process that started it has ended."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process sees to that
    end_with_parent()
