"""Scores a folder of mattes, made by any method, against a folder of truths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from SDMatte.errors import DataError
from SDMatte.images.io import scan_folder
from SDMatte.runtime.files import stem_key
from SDMatte.scoring.protocols import Protocol, get_protocol
from SDMatte.scoring.results import EvaluationResult, ImageScore
from SDMatte.scoring.workers import Scorer, Target, Workers


def score_folder(
    pred_dir: str | Path,
    truth_dir: str | Path,
    trimap_dir: str | Path | None = None,
    protocol: str | Protocol = "official",
    num_workers: int = 0,
    *,
    dataset: str = "",
    prompt: str = "",
    model: str = "",
    info: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Scores every picture of a truth folder, or none.

    Files belong together when their names are alike up to the extension and the spelling
    (`SDMatte.runtime.files.name_key`). What else is in the folders is logged.

    Args:
        pred_dir: The mattes.
        truth_dir: The true alphas.
        trimap_dir: Trimaps; if given, only their unknown pixels count.
        protocol: Name or protocol.
        num_workers: See `SDMatte.scoring.workers.Workers`.
        dataset: Name of the set, by default that of the truth's folder.
        prompt: Short name of the prompt, for the report.
        model: Name of the method, by default that of the predictions' folder.
        info: More for the report.

    Raises:
        DataError: Predictions (or trimaps) are missing, left over, unreadable or of a wrong
            size; the message has a line for each of them.
    """
    protocol = get_protocol(protocol)
    problems: list[str] = []
    preds = _by_stem(pred_dir, problems)
    truths = _by_stem(truth_dir, problems)
    trimaps = _by_stem(trimap_dir, problems) if trimap_dir is not None else {}
    if not truths:
        raise DataError(f"There is no picture in {truth_dir}.")
    problems += [
        f"missing: there is no prediction for {truths[n]}." for n in truths if n not in preds
    ]
    problems += [f"extra: there is no true alpha for {preds[n]}." for n in preds if n not in truths]
    if trimap_dir is not None:
        missing = [n for n in truths if n not in trimaps]
        problems += [f"missing: there is no trimap for {truths[n]}." for n in missing]
    names = [n for n in truths if n in preds and (trimap_dir is None or n in trimaps)]

    # Where a file is missing, the others are still looked at, but not worth their metrics.
    with_metrics = not problems
    outcomes: list[ImageScore | str] = []
    workers = Workers(num_workers, outcomes.append)
    scorer = Scorer(protocol)
    try:
        for name in names:
            target = Target(str(truths[name]), str(trimaps[name]) if trimaps else None)
            workers.submit(scorer.file, target, preds[name], with_metrics)
        workers.finish()
    finally:
        workers.close()
    problems += [outcome for outcome in outcomes if isinstance(outcome, str)]
    if problems:
        raise DataError(
            f"{pred_dir} cannot be scored against {truth_dir}, {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )
    return EvaluationResult(
        dataset=dataset or Path(truth_dir).resolve().name,
        protocol=protocol.name,
        pictures=outcomes,
        prompt=prompt,
        model=model or Path(pred_dir).resolve().name,
        trimap_restricted=trimap_dir is not None,
        info=info or {},
    )


def _by_stem(directory: str | Path, problems: list[str]) -> dict[str, Path]:
    """Map stems to the paths of a folder's images; stems that occur twice go to the problems."""
    scan = scan_folder(directory)
    scan.log_left_out()
    found: dict[str, list[Path]] = defaultdict(list)
    for name in scan.images:
        found[stem_key(name)].append(Path(directory, name))
    problems += [
        f"ambiguous: {' and '.join(p.name for p in paths)} in {directory} share a name."
        for paths in found.values()
        if len(paths) > 1
    ]
    return {stem: paths[0] for stem, paths in found.items()}
