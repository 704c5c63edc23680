"""The paper's results, which this project did not measure, for comparison with a result."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.results import EvaluationResult

PUBLISHED_NOTE = "published, not measured here"


@cache
def published_results() -> dict[str, Any]:
    """Read the paper's tables.

    Returns:
        ``results``: a list of ``dataset``, ``model``, ``prompt`` and raw metrics, where published;
        ``num_images``: number of images by data set, where known.
    """
    path = Path(__file__).with_name("published_results.json")
    return json.loads(path.read_text(encoding="utf-8"))


def published_rows(result: EvaluationResult) -> dict[str, dict[str, float]]:
    """Return the published scores for the data set and prompt of a result.

    They may be from other images, see `has_published_size`.

    Returns:
        Raw values by metric, for each label; labels contain `PUBLISHED_NOTE`.
    """
    return {
        f"{row['model']} ({PUBLISHED_NOTE})": {key: row[key] for key in METRICS if key in row}
        for row in published_results()["results"]
        if (row["dataset"], row["prompt"]) == (result.dataset, result.prompt)
    }


def has_published_size(result: EvaluationResult) -> bool:
    """Return whether a result has as many images as the published ones; True if unknown.

    If it does not, differences from the published scores are meaningless.
    """
    count = published_results()["num_images"].get(result.dataset)
    return count in (None, len(result.images))


def published_caution(result: EvaluationResult) -> str:
    """Explain what limits the comparison with the published scores; "" if nothing does."""
    if not published_rows(result):
        return ""
    count = published_results()["num_images"].get(result.dataset)
    if not has_published_size(result):
        return (
            f"The paper's scores are for all {count} images of {result.dataset} and are not "
            f"comparable with these for {len(result.images)}."
        )
    cautions = []
    if count is None:
        cautions.append(
            f"The number of {result.dataset} images behind the paper's scores is unknown; this run "
            f"has {len(result.images)}."
        )
    if result.protocol != "official" or result.trimap_restricted:
        cautions.append(
            "The published scores follow the official protocol over all pixels; this run does "
            "not, so differences mean little."
        )
    return " ".join(cautions)
