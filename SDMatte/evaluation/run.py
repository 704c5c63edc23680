"""Run the tests of a model, for ``test`` and for evaluations during training."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.evaluator import inference_context
from omegaconf import DictConfig

from SDMatte.errors import ConfigError, DataError
from SDMatte.evaluation.evaluator import MatteEvaluator
from SDMatte.evaluation.plan import SetTest, plan_test
from SDMatte.evaluation.progress_log import clear_results
from SDMatte.runtime.config import build
from SDMatte.runtime.ranks import run_on_main

logger = logging.getLogger(__name__)


def run_test(
    config: DictConfig,
    model: Callable[..., torch.Tensor],
    output_dir: str | Path | None = None,
    model_name: str = "",
    prompts: Iterable[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Predict and score every test set of a config with every prompt, without resuming.

    See `plan_test` and `run_plan`.
    """
    return run_plan(plan_test(config, output_dir, prompts), model, model_name)


def run_plan(
    plan: Sequence[SetTest],
    model: Callable[..., torch.Tensor] | None,
    model_name: str = "",
    info: Mapping[str, Any] | None = None,
    only: str | None = None,
) -> dict[str, dict[str, float]]:
    """Run the tests of a plan.

    Args:
        plan: From `plan_test`.
        model: An `SDMatte.modeling.SDMatte`, or the class of a baseline, which is instantiated for
            each prompt. None if nothing is predicted.
        model_name: Name of the model, for the reports.
        info: Further entries of the reports, such as the checkpoint.
        only: ``"predict"``: write mattes without scoring them; ``"score"``: score mattes written
            before; None: both.

    Returns:
        Raw metrics by ``SET/PROMPT``; empty in all processes but the main one.

    Raises:
        ConfigError: ``only`` is given, but no mattes are written.
        DataError: An image is unusable, or has no matte to score.
    """
    if only is not None and not all(test.config.test.save_mattes for test in plan):
        raise ConfigError(f"--only {only} needs test.save_mattes=True.")
    if only == "score":
        _check_predicted(plan)
    results: dict[str, dict[str, float]] = {}
    is_module = isinstance(model, torch.nn.Module)
    with inference_context(model) if is_module else contextlib.nullcontext():
        for test in plan:
            _prepare_folder(test)
            evaluator = MatteEvaluator(test, model_name, info, with_metrics=only != "predict")
            if only == "score":
                results |= evaluator.evaluate()
                continue
            loader, dataset = test.loader, test.loader.dataset
            if test.done:
                wanted = list(test.missing)
                loader = build(test.config.dataloader.test, dataset=dataset, wanted=wanted)
            results |= inference_on_dataset(_bind_prompt(model, test), loader, evaluator)
    return results


def _check_predicted(plan: Sequence[SetTest]) -> None:
    lines = [
        f"{test.folder}: {len(test.missing)} of {len(test.targets)}, such as {name}"
        for test in plan
        if (name := next(iter(test.missing.values()), None)) is not None
    ]
    if lines:
        raise DataError("Mattes to score are missing:\n  " + "\n  ".join(lines))


def _prepare_folder(test: SetTest) -> None:
    """Delete results that are not resumed, and start the progress log."""
    folder = test.folder
    if folder is None:
        return

    def prepare() -> None:
        if not test.done:
            clear_results(folder)
        if test.progress_log is not None:
            test.progress_log.begin(test.done.values())

    run_on_main(prepare)
    if test.done:
        count = len(test.loader.dataset)
        logger.info("%s: resuming, %d of %d images are done.", test.folder, len(test.done), count)


def _bind_prompt(model: Any, test: SetTest) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    """Return the model as a function of the batch alone."""
    if isinstance(model, type):  # the class of a baseline
        return model(test.prompt.alias)

    def predict(batch: Mapping[str, Any]) -> torch.Tensor:
        if not test.config.test.use_captions:
            batch = {key: value for key, value in batch.items() if key != "caption"}
        return model(batch, aux_input=test.prompt.mask_key)

    return predict
