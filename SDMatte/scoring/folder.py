"""Score a folder of mattes, made by any method, against a folder of true alphas."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from SDMatte.errors import DataError
from SDMatte.images.listing import scan_folder
from SDMatte.runtime.files import stem_key
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.results import EvaluationResult, ImageScore
from SDMatte.scoring.workers import Scorer, Target, Workers


def score_folder(
    pred_dir: str | Path,
    truth_dir: str | Path,
    trimap_dir: str | Path | None = None,
    protocol: str = "official",
    num_workers: int = 0,
    *,
    dataset: str = "",
    prompt: str = "",
    model: str = "",
    info: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Score the mattes of all images of a truth folder, or of none if there are problems.

    Files are paired by name, regardless of extension and Unicode spelling
    (`SDMatte.runtime.files.stem_key`). Other files are logged.

    Args:
        pred_dir: The mattes.
        truth_dir: The true alphas.
        trimap_dir: Trimaps. If given, only their unknown pixels count.
        protocol: ``"official"`` or ``"corrected"``.
        num_workers: See `SDMatte.scoring.workers.Workers`.
        dataset: Name of the data set; default: the name of the truth folder.
        prompt: Short name of the prompt, for the report.
        model: Name of the method; default: the name of the mattes' folder.
        info: Further entries of the report.

    Raises:
        DataError: Files are missing, left over, ambiguous, unreadable or of the wrong size; the
            message has a line for each.
    """
    problems: list[str] = []
    preds = _by_stem(pred_dir, problems)
    truths = _by_stem(truth_dir, problems)
    trimaps = None if trimap_dir is None else _by_stem(trimap_dir, problems)
    if not truths:
        raise DataError(f"No images found in {truth_dir}.")
    problems += [f"missing: no prediction for {truths[n]}." for n in truths if n not in preds]
    problems += [f"extra: no true alpha for {preds[n]}." for n in preds if n not in truths]
    if trimaps is not None:
        problems += [f"missing: no trimap for {truths[n]}." for n in truths if n not in trimaps]

    # If files are missing, the others are only checked, not scored.
    scorer = Scorer(get_protocol(protocol), with_metrics=not problems)
    outcomes: list[ImageScore | str] = []
    with Workers(num_workers, outcomes.append) as workers:
        for name in truths:
            if name in preds and (trimaps is None or name in trimaps):
                target = Target(str(truths[name]), None if trimaps is None else str(trimaps[name]))
                workers.submit(scorer.score_file, target, preds[name])
    problems += [outcome for outcome in outcomes if isinstance(outcome, str)]
    if problems:
        raise DataError(
            f"{pred_dir} does not match {truth_dir}, {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )
    return EvaluationResult(
        dataset=dataset or Path(truth_dir).resolve().name,
        protocol=protocol,
        images=[outcome for outcome in outcomes if isinstance(outcome, ImageScore)],
        prompt=prompt,
        model=model or Path(pred_dir).resolve().name,
        trimap_restricted=trimap_dir is not None,
        info=info or {},
    )


def _by_stem(folder: str | Path, problems: list[str]) -> dict[str, Path]:
    """Map stems to a folder's images; stems that occur twice are added to the problems."""
    scan = scan_folder(folder)
    scan.log_left_out()
    found: dict[str, list[Path]] = defaultdict(list)
    for name in scan.images:
        found[stem_key(name)].append(Path(folder, name))
    problems += [
        f"ambiguous: {' and '.join(p.name for p in paths)} in {folder} share a name."
        for paths in found.values()
        if len(paths) > 1
    ]
    return {stem: paths[0] for stem, paths in found.items()}
