"""Evaluator that scores predictions in detectron2's evaluation loop."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from SDMatte.errors import DataError
from SDMatte.evaluation.identity import file_hash
from SDMatte.evaluation.plan import SetTest
from SDMatte.runtime.files import stem_key
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.report import write_report
from SDMatte.scoring.results import SHEET, EvaluationResult, ImageScore
from SDMatte.scoring.sheets import write_error_maps, write_worst_and_best
from SDMatte.scoring.tables import score_table
from SDMatte.scoring.workers import Scorer, Target, Workers

logger = logging.getLogger(__name__)


class MatteEvaluator(DatasetEvaluator):
    """Score one data set with one prompt; keep scores and paths, but no images.

    In a distributed run, each process scores its images and `evaluate` gathers the scores. If the
    test has a folder, each matte is written to its ``mattes/`` as a PNG named like the alpha, and
    the main process writes ``scores.csv``, ``summary.json``, ``summary.md`` and
    ``worst_and_best.png``. `evaluate` sets ``result`` in the main process.
    """

    def __init__(
        self,
        test: SetTest,
        model: str = "",
        info: Mapping[str, Any] | None = None,
        with_metrics: bool = True,
    ) -> None:
        """Initialize without reading or writing files.

        Args:
            test: The test to run. Images that are already done are not scored again.
            model: Name of the model, for the report.
            info: Further entries of the report, such as the checkpoint.
            with_metrics: Whether to score the mattes, rather than only write them.

        Raises:
            ConfigError: The protocol is unknown, or ``test.num_workers`` is negative.
        """
        self.test = test
        self.model = model
        self.info = dict(info or {})
        self.with_metrics = with_metrics
        settings = test.config.test
        protocol = get_protocol(settings.protocol)
        folder = test.folder if settings.save_mattes else None
        self._scorer = Scorer(protocol, folder, with_metrics)
        self._workers = Workers(settings.num_workers, self._collect)
        self.reset()

    def reset(self) -> None:
        """Forget all images except those done by earlier runs."""
        self._workers.close()
        self.result: EvaluationResult | None = None
        self._finished: list[ImageScore] = []
        self._unscored: list[tuple[Target, str]] = []
        self._problems: list[str] = []
        for name, image in self.test.done.items():
            target = self.test.targets[name]
            if self.with_metrics and not image.scores:
                self._unscored.append((target, image.pred_path))
            elif comm.is_main_process():
                # The data may have been moved since then.
                paths = {"alpha_path": target.alpha_path, "image_path": target.image_path}
                self._finished.append(replace(image, **paths))

    def process(self, inputs: Mapping[str, Any], outputs: torch.Tensor) -> None:
        """Submit a batch for scoring.

        `evaluate` reports images whose prediction is not finite or whose truth is unreadable.

        Args:
            inputs: The batch; ``hw`` int64 ``[B, 2]`` and the list ``alpha_path`` are used.
            outputs: The model's alpha ``[B, 1, h, w]`` in [0, 1].

        Raises:
            ValueError: The outputs have another shape.
            DataError: A worker process was killed.
        """
        names = [stem_key(path) for path in inputs["alpha_path"]]
        if outputs.ndim != 4 or outputs.shape[:2] != (len(names), 1):
            raise ValueError(
                f"Predictions for {len(names)} images must be [{len(names)}, 1, h, w]; "
                f"got {list(outputs.shape)}."
            )
        preds = outputs.detach()[:, 0].to("cpu", torch.float32).numpy()  # [B, h, w]
        for name, pred, hw in zip(names, preds, inputs["hw"].tolist(), strict=True):
            if name not in self.test.done:  # done images may share a batch with missing ones
                target = self.test.targets[name]
                self._workers.submit(self._scorer.score_prediction, target, pred, hw)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Average over the images of all processes and write the reports.

        Returns:
            ``{"AIM-500/box": {"MSE": …, "MAD": …, "SAD": …, "Grad": …, "Conn": …}}`` in raw units,
            as detectron2's hooks and printers expect; empty in all processes but the main one, and
            without metrics.

        Raises:
            DataError: Files are unreadable or do not match, names are repeated, or images are
                missing. Every process raises it, with a list of all problems.
        """
        for target, path in self._unscored[comm.get_rank() :: comm.get_world_size()]:
            self._workers.submit(self._scorer.score_file, target, path)
        self._workers.finish()
        test, dataset = self.test, self.test.loader.dataset
        if test.progress_log is not None:
            test.progress_log.close()
        prompt_seed, info = dataset.seed, self.info
        if dataset.frozen is not None and not test.prompt.fixed:
            path = dataset.frozen.path
            prompt_seed = None
            info = {**info, "prompts from": path, "prompts sha256": file_hash(path)}
        result = EvaluationResult(
            dataset=test.name,
            protocol=test.config.test.protocol,
            images=self._gather(),
            prompt=test.label,
            model=self.model,
            prompt_seed=prompt_seed,
            trimap_restricted=test.config.test.use_trimap,
            info=info,
        )
        if not comm.is_main_process():
            return {}
        if test.progress_log is not None:
            test.progress_log.begin(result.images)  # merges the files of all processes
        if not self.with_metrics:
            logger.info("%s: %d mattes written.", result.key, len(result.images))
            return {}
        self.result = result
        self._write(result)
        return {result.key: result.scores}

    def _collect(self, outcome: ImageScore | str) -> None:
        if isinstance(outcome, str):
            self._problems.append(outcome)
            return
        self._finished.append(outcome)
        if self.test.progress_log is not None:
            self.test.progress_log.add(outcome, comm.get_rank())

    def _gather(self) -> list[ImageScore]:
        """Return the images of all processes; each process raises the problems of all."""
        gathered = comm.all_gather((self._finished, self._problems))
        images = sorted(chain.from_iterable(g[0] for g in gathered), key=lambda i: i.name)
        problems = list(chain.from_iterable(g[1] for g in gathered))
        count, expected = len(images) + len(problems), len(self.test.targets)
        if count != expected:
            problems.append(f"{count} images were predicted, but the data set has {expected}.")
        if problems:
            raise DataError(
                f"Cannot score {self.test.key}, {len(problems)} problems:\n  "
                + "\n  ".join(problems)
            )
        return images

    def _write(self, result: EvaluationResult) -> None:
        folder, settings = self.test.folder, self.test.config.test
        if folder is not None:
            write_report(result, folder)
            if settings.save_mattes:
                write_worst_and_best(result, folder / SHEET)
                if settings.error_maps:
                    write_error_maps(result.images, folder, settings.num_workers)
        logger.info(
            "%s, %d images, protocol %s:\n%s",
            result.key,
            len(result.images),
            result.protocol,
            score_table({self.model or "prediction": result.scores}),
        )
