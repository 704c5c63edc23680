"""Scores a model's predictions picture by picture, in detectron2's evaluation loop."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import SDMatte.compat  # noqa: F401  (before detectron2)

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from SDMatte.errors import DataError
from SDMatte.evaluation.progress_log import ProgressLog
from SDMatte.scoring.protocols import Protocol, get_protocol
from SDMatte.scoring.report import contact_sheet, score_table, write_error_maps, write_report
from SDMatte.scoring.results import EvaluationResult, ImageScore
from SDMatte.scoring.workers import Scorer, Target, Workers

logger = logging.getLogger(__name__)


class MatteEvaluator(DatasetEvaluator):
    """Scores one set under one prompt; holds numbers, not pictures.

    Works in several processes: each scores its pictures, `evaluate` gathers. With an output
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
        num_images: int | None = None,
        num_workers: int = 1,
        sheet_rows: int = 4,
        save_mattes: bool = True,
        error_maps: bool = False,
        scoring: bool = True,
        progress_log: ProgressLog | None = None,
        done: Sequence[ImageScore] = (),
        written: Sequence[tuple[Target, Path]] = (),
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
            num_images: How many pictures the set has; `evaluate` then refuses to average
                over another number.
            num_workers: Who computes the metrics beside the model, see
                `SDMatte.scoring.workers.Workers`.
            sheet_rows: How many worst, and how many best, the contact sheet shows; 0 for none.
            save_mattes: Whether the mattes are written; without them there is no contact sheet.
            error_maps: Whether ``errors/`` gets a map of the errors of each matte.
            scoring: False: mattes are only written, to be scored by another evaluator.
            progress_log: Gets each picture that is done, so that another evaluator can go on.
            done: The pictures done before, the same in all processes.
            written: Mattes written before, each with what it is to be scored against, the same in
                all processes; `evaluate` shares them out.
            model: Name of the model, for the report.
            prompt_seed: Seed of the drawn prompts, for the report.
            info: More for the report, such as the checkpoint.

        Raises:
            ConfigError: There is no such protocol, or the number of workers is negative.
        """
        self.dataset = dataset
        self.prompt = prompt
        self.protocol = get_protocol(protocol)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.use_trimap = use_trimap
        self.num_images = num_images
        self.sheet_rows = sheet_rows if save_mattes else 0
        self.error_maps = error_maps and save_mattes
        self.scoring = scoring
        self.progress_log = progress_log
        self.done = list(done)
        self.written = list(written)
        self.model = model
        self.prompt_seed = prompt_seed
        self.info = dict(info or {})
        self.result: EvaluationResult | None = None
        self._scorer = Scorer(self.protocol, self.output_dir if save_mattes else None, scoring)
        self._workers = Workers(num_workers, self._note)
        self.reset()

    def reset(self) -> None:
        """Forgets all pictures but those done before."""
        self._workers.close()
        self.result = None
        self._ready = {p.name for p in self.done} | {target.name for target, _ in self.written}
        self._names: set[str] = set()
        self._finished = list(self.done) if comm.is_main_process() else []
        self._problems: list[str] = []

    def process(self, inputs: Mapping[str, Any], outputs: torch.Tensor) -> None:
        """Takes a batch.

        A picture whose prediction is not finite, whose truth cannot be read or whose name has been
        seen is noted; `evaluate` then names them all.

        Args:
            inputs: The batch: ``hw`` int64 ``[B, 2]``, lists ``alpha_path`` and, with
                ``use_trimap``, ``trimap_path``; ``image_path`` if the contact sheet is to show
                the pictures.
            outputs: The model's alpha ``[B, 1, h, w]`` in [0, 1].

        Raises:
            ValueError: The outputs have another shape.
            DataError: A worker process was ended from outside.
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
        targets = map(Target, map(str, paths), trimaps, images)
        for target, pred, hw in zip(targets, preds, sizes, strict=True):
            if target.name in self._ready:
                continue  # it came along in the batch of another one
            if target.name in self._names:
                self._problems.append(
                    f"{target.alpha_path}: there was a picture of this name before."
                )
                continue
            self._names.add(target.name)
            self._workers.submit(self._scorer.prediction, target, pred, hw)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Averages over the pictures of all processes and writes the reports.

        Returns:
            ``{"AIM-500/box": {"MSE": …, "MAD": …, "SAD": …, "Grad": …, "Conn": …}}`` in raw
            units, as detectron2's hooks and printers take it; empty in all processes but the
            main one, and where nothing is scored. `result` holds the single pictures, too.

        Raises:
            DataError: In every process: files could not be read or fit, names occurred twice, or
                the number of pictures is not the expected one; all are listed.
        """
        for target, path in self.written[comm.get_rank() :: comm.get_world_size()]:
            self._workers.submit(self._scorer.file, target, path)
        self._workers.finish()
        if self.progress_log is not None:
            self.progress_log.close()
        result = EvaluationResult(
            dataset=self.dataset,
            protocol=self.protocol.name,
            pictures=self._gather(),
            prompt=self.prompt,
            model=self.model,
            prompt_seed=self.prompt_seed,
            trimap_restricted=self.use_trimap,
            info=self.info,
        )
        if not comm.is_main_process():
            return {}
        if self.progress_log is not None:
            self.progress_log.begin(result.pictures)  # one file again
        if not self.scoring:
            logger.info("%s: %d mattes are written.", result.key, len(result.pictures))
            return {}
        self.result = result
        self._write(result)
        return OrderedDict({result.key: result.scores})

    def _gather(self) -> list[ImageScore]:
        """Brings the pictures of all processes together, or the problems of all to all."""
        gathered = comm.all_gather((self._finished, self._problems))
        pictures = sorted(chain.from_iterable(g[0] for g in gathered), key=lambda p: p.name)
        problems = list(chain.from_iterable(g[1] for g in gathered))
        if self.num_images is not None and len(pictures) + len(problems) != self.num_images:
            problems.append(
                f"{len(pictures) + len(problems)} pictures were predicted, "
                f"the set has {self.num_images}."
            )
        if problems:
            raise DataError(
                f"{self.dataset}/{self.prompt} cannot be scored, {len(problems)} problems:\n  "
                + "\n  ".join(problems)
            )
        return pictures

    def _write(self, result: EvaluationResult) -> None:
        """Writes what the main process leaves, and logs the scores."""
        if self.output_dir is not None:
            write_report(result, self.output_dir)
            if self.sheet_rows:
                sheet = self.output_dir / "worst_and_best.png"
                contact_sheet(result, sheet, num_each=self.sheet_rows)
            if self.error_maps:
                write_error_maps(result.pictures, self.output_dir, self._workers.num_workers)
        logger.info(
            "%s, %d pictures, protocol %s:\n%s",
            result.key,
            len(result.pictures),
            result.protocol,
            score_table({self.model or "prediction": result.scores}),
        )

    def _note(self, outcome: ImageScore | str) -> None:
        if isinstance(outcome, str):
            self._problems.append(outcome)
            return
        self._finished.append(outcome)
        if self.progress_log is not None:
            self.progress_log.add(outcome, comm.get_rank())
