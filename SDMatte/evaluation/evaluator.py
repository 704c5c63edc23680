"""Scores a model's predictions picture by picture, in detectron2's evaluation loop."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import SDMatte.compat  # noqa: F401  (before detectron2)

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from SDMatte.errors import DataError
from SDMatte.evaluation.protocols import (
    Protocol,
    finish_alpha,
    get_protocol,
    read_partners,
    score_pair,
)
from SDMatte.evaluation.report import (
    EvaluationResult,
    PictureScore,
    contact_sheet,
    score_table,
    write_report,
)
from SDMatte.image_io import write_image

logger = logging.getLogger(__name__)


class MatteEvaluator(DatasetEvaluator):
    """Scores one set under one prompt; holds numbers, not pictures.

    Works in several processes: each scores its pictures, :meth:`evaluate` gathers. With an output
    folder, ``mattes/`` there gets each matte as a PNG under the alpha's name, and the main process
    writes ``scores.csv``, ``summary.json``, ``summary.md`` and ``worst_and_best.png``.
    """

    def __init__(
        self,
        dataset: str,
        prompt: str,
        *,
        protocol: str | Protocol = "official",
        output_dir: str | Path | None = None,
        use_trimap: bool = False,
        num_pictures: int | None = None,
        num_workers: int = 1,
        sheet_rows: int = 4,
        model: str = "",
        prompt_seed: int | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares; nothing is read or written yet.

        Args:
            dataset: Name of the set, for the results.
            prompt: Short name of the prompt, for the results.
            protocol: Name or protocol.
            output_dir: Where mattes and reports go, None for nowhere.
            use_trimap: Whether only the unknown pixels of the set's trimaps count. The published
                tables count all pixels.
            num_pictures: How many pictures the set has; :meth:`evaluate` then refuses to average
                over another number.
            num_workers: Threads that compute metrics beside the model; 0 computes in place.
            sheet_rows: How many worst, and how many best, the contact sheet shows; 0 for none.
            model: Name of the model, for the report.
            prompt_seed: Seed of the drawn prompts, for the report.
            info: More for the report, such as the checkpoint.

        Raises:
            ConfigError: There is no such protocol.
        """
        self.dataset = dataset
        self.prompt = prompt
        self.protocol = get_protocol(protocol)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.use_trimap = use_trimap
        self.num_pictures = num_pictures
        self.num_workers = num_workers
        self.sheet_rows = sheet_rows
        self.model = model
        self.prompt_seed = prompt_seed
        self.info = dict(info or {})
        self.result: EvaluationResult | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.reset()

    def reset(self) -> None:
        """Forgets all pictures."""
        self._close()
        self.result = None
        self._names: set[str] = set()
        self._scored: list[PictureScore] = []
        self._problems: list[str] = []
        self._pending: deque[Future] = deque()

    def process(self, inputs: Mapping[str, Any], outputs: torch.Tensor) -> None:
        """Takes a batch.

        A picture whose prediction is not finite, whose truth cannot be read or whose name has been
        seen is noted; :meth:`evaluate` then names them all.

        Args:
            inputs: The batch: ``hw`` int64 ``[B, 2]``, lists ``alpha_path`` and, with
                ``use_trimap``, ``trimap_path``; ``image_path`` if the contact sheet is to show
                the pictures.
            outputs: The model's alpha ``[B, 1, h, w]`` in [0, 1].

        Raises:
            ValueError: The outputs have another shape.
        """
        paths = list(inputs["alpha_path"])
        if outputs.ndim != 4 or outputs.shape[:2] != (len(paths), 1):
            raise ValueError(
                f"Predictions of {len(paths)} pictures must be [{len(paths)}, 1, h, w], "
                f"not {list(outputs.shape)}."
            )
        preds = outputs.detach()[:, 0].to("cpu", torch.float32).numpy()  # [B, h, w]
        sizes = inputs["hw"].tolist()
        trimaps = inputs["trimap_path"] if self.use_trimap else [None] * len(paths)
        images = inputs.get("image_path", [""] * len(paths))
        for job in zip(preds, sizes, paths, trimaps, images, strict=True):
            name = Path(job[2]).stem
            if name in self._names:
                self._problems.append(f"{job[2]}: there was a picture of this name before.")
                continue
            self._names.add(name)
            self._submit(*job)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Averages over the pictures of all processes and writes the reports.

        Returns:
            ``{"AIM-500/box": {"MSE": …, "MAD": …, "SAD": …, "Grad": …, "Conn": …}}`` in raw
            units, as detectron2's hooks and printers take it; empty in all processes but the
            main one. :attr:`result` there holds the single pictures, too.

        Raises:
            DataError: In every process: files could not be read or fit, names occurred twice, or
                the number of pictures is not the expected one; all are listed.
        """
        while self._pending:
            self._collect()
        self._close()
        gathered = comm.all_gather((self._scored, self._problems))
        pictures = sorted(chain.from_iterable(g[0] for g in gathered), key=lambda p: p.name)
        problems = list(chain.from_iterable(g[1] for g in gathered))
        if self.num_pictures is not None and len(pictures) + len(problems) != self.num_pictures:
            problems.append(
                f"{len(pictures) + len(problems)} pictures were predicted, "
                f"the set has {self.num_pictures}."
            )
        if problems:
            raise DataError(
                f"{self.dataset}/{self.prompt} cannot be scored, {len(problems)} problems:\n  "
                + "\n  ".join(problems)
            )
        result = EvaluationResult(
            dataset=self.dataset,
            protocol=self.protocol.name,
            pictures=pictures,
            prompt=self.prompt,
            model=self.model,
            prompt_seed=self.prompt_seed,
            trimap_restricted=self.use_trimap,
            info=self.info,
        )
        if not comm.is_main_process():
            return {}
        self.result = result
        if self.output_dir is not None:
            write_report(result, self.output_dir)
            if self.sheet_rows:
                contact_sheet(
                    result, self.output_dir / "worst_and_best.png", num_each=self.sheet_rows
                )
        logger.info(
            "%s, %d pictures, protocol %s:\n%s",
            result.key,
            len(pictures),
            result.protocol,
            score_table({self.model or "prediction": result.scores}),
        )
        return OrderedDict({result.key: result.scores})

    def _submit(self, *job: Any) -> None:
        """Scores a picture, now or in a thread; never holds more than a few of them."""
        if self.num_workers < 1:
            future: Future = Future()
            future.set_result(self._score(*job))
        else:
            self._pool = self._pool or ThreadPoolExecutor(self.num_workers)
            future = self._pool.submit(self._score, *job)
        self._pending.append(future)
        while len(self._pending) > 2 * self.num_workers:
            self._collect()

    def _collect(self) -> None:
        outcome = self._pending.popleft().result()
        if isinstance(outcome, PictureScore):
            self._scored.append(outcome)
        else:
            self._problems.append(outcome)

    def _score(
        self,
        pred: np.ndarray,
        hw: tuple[int, int],
        alpha_path: str,
        trimap_path: str | None,
        image_path: str,
    ) -> PictureScore | str:
        """Finishes, writes and scores one matte; gives a sentence where that cannot be done."""
        name, pred_path = Path(alpha_path).stem, ""
        try:
            matte = finish_alpha(pred, hw, self.protocol)
            if self.output_dir is not None:
                pred_path = str(write_image(self.output_dir / "mattes" / f"{name}.png", matte))
            if trimap_path == "":
                raise DataError("It has no trimap, but only the unknown pixels are to count.")
            true, trimap = read_partners(matte, alpha_path, trimap_path, self.protocol)
        except (DataError, ValueError) as error:
            return f"{alpha_path}: {error}"
        scores = score_pair(matte, true, trimap, self.protocol)
        return PictureScore(name, *matte.shape, scores, str(alpha_path), pred_path, image_path)

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
