"""The model card of a repository on the Hugging Face hub, from the records of a run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from omegaconf import OmegaConf

from SDMatte.scoring.document import Section, render
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.report import UNITS
from SDMatte.scoring.results import EvaluationResult
from SDMatte.scoring.tables import Table, metrics_table

_RECIPE = {  # setting by label; settings that are off or missing are left out
    "pretrained": "model.pretrained_model_name_or_path",
    "start": "train.init_checkpoint",
    "data sets": "dataloader.train.dataset.names",
    "resolution": "dataloader.train.dataset.size",
    "prompts": "model.aux_input_list",
    "losses": "criterion.losses",
    "iterations": "train.max_iter",
    "images per batch and process": "dataloader.train.batch_size",
    "batches per iteration": "train.accumulate",
    "optimizer": "optimizer._target_",
    "learning rate": "optimizer.lr",
    "weight decay": "optimizer.weight_decay",
    "schedule": "lr_multiplier._target_",
    "low precision": "train.amp.enabled",
    "moving average": "train.ema.enabled",
    "LoRA": "train.lora.enabled",
    "seed": "train.seed",
}
_PATHS = ("pretrained", "start")
_TASK = "image-segmentation"  # the nearest of the hub's tasks


def render_card(
    repo: str,
    model: str,
    results: Sequence[EvaluationResult],
    config: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    license_id: str | None = None,
) -> str:
    """Return a model card: Markdown with metadata.

    Args:
        repo: ``OWNER/NAME``.
        model: ``"SDMatte"`` or ``"LiteSDMatte"``.
        results: Scores of the model.
        config: Resolved config of the training run; None if unknown.
        base_model: Hub id of the model that the training started from.
        license_id: Identifier of the license on the hub; None if it is not stated.
    """
    data = ModelCardData(
        license=license_id,
        library_name="sdmatte",
        pipeline_tag=_TASK,
        tags=["image-matting", "sdmatte"],
        base_model=base_model,
        model_name=repo.partition("/")[2],
        eval_results=[one for result in results for one in _eval_results(result)] or None,
    )
    sections = [
        Section(
            text=f"{model} is a model for interactive image matting: it predicts the alpha of the "
            f"object that a box, points or a mask indicates."
        ),
        _scores(results),
    ]
    if config is not None:
        items = [f"{name}: {value}" for name, value in _recipe(config).items()]
        sections.append(Section(title="Training", items=items))
    stated = f"The license is {license_id}." if license_id else "No license is stated."
    terms = "The terms of the pretrained weights and of the data sets also apply."
    sections.append(Section(title="License", text=f"{stated} {terms}"))
    usage = (
        "\n## Usage\n\n```python\nfrom SDMatte import MattePredictor\n\n"
        f'predictor = MattePredictor.from_pretrained("{repo}")\npredictor.set_image("photo.jpg")\n'
        "result = predictor.predict(box=(10, 20, 300, 400))  # x0, y0, x1, y1 in pixels\n"
        "result.alpha  # float32 [H, W] in [0, 1]\n```\n"
    )
    return f"---\n{data.to_yaml()}\n---\n\n{render('report.md', repo, sections)}{usage}"


def _scores(results: Sequence[EvaluationResult]) -> Section:
    if not results:
        return Section(title="Scores", text="Not tested.")
    tables = []
    for name in sorted({result.protocol for result in results}):
        found = [result for result in results if result.protocol == name]
        table = metrics_table({_label(result): result.scores for result in found})
        counts = [str(len(result.images)) for result in found]
        rows = [[*row, count] for row, count in zip(table.rows, counts, strict=True)]
        description = f"Protocol {name}: {get_protocol(name).description}"
        tables.append(Table([*table.header, "images"], rows, description))
    return Section(title="Scores", tables=tables, notes=[UNITS])


def _label(result: EvaluationResult) -> str:
    return f"{result.key}, unknown pixels" if result.trimap_restricted else result.key


def _eval_results(result: EvaluationResult) -> list[EvalResult]:
    slug = re.sub(r"\W+", "-", result.dataset).strip("-").lower()
    name = f"{_label(result)} ({result.protocol}, {len(result.images)} images)"
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=slug,
            dataset_name=name,
            metric_type=metric.lower(),
            metric_value=result.scores[metric],
            metric_name=metric,
        )
        for metric in METRICS
    ]


def _recipe(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the recipe as text by label; local paths are reduced to their last part."""
    tree, recipe = OmegaConf.create(dict(config)), {}
    for name, key in _RECIPE.items():
        value = OmegaConf.select(tree, key)
        if value in (None, False, ""):
            continue
        if OmegaConf.is_list(value):
            value = ", ".join(map(str, value))
        if key.endswith("_target_"):
            value = str(value).rpartition(".")[2]
        if name in _PATHS and (Path(str(value)).is_absolute() or Path(str(value)).exists()):
            value = Path(str(value)).name
        recipe[name] = "on" if value is True else str(value)
    return recipe
