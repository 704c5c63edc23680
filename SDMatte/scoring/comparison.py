"""Comparison of several results with each other and with the published ones."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SDMatte.errors import MissingFileError
from SDMatte.images.listing import shorten
from SDMatte.runtime.files import check_not_read, write_text
from SDMatte.scoring.document import Section, render
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.published import (
    PUBLISHED_NOTE,
    has_published_size,
    published_caution,
    published_rows,
)
from SDMatte.scoring.report import UNITS, list_facts
from SDMatte.scoring.results import (
    PROGRESS,
    EvaluationResult,
    ImageScore,
    find_results,
    read_result,
)
from SDMatte.scoring.sheets import write_sheet
from SDMatte.scoring.tables import Table, difference_rows, metrics_table

logger = logging.getLogger(__name__)

DOCUMENTS = ("report.md", "report.tex", "report.html")
_SHARED_FACTS = ("protocol", "pixels", "model")


@dataclass(frozen=True)
class Comparison:
    """Results of one data set and prompt under one protocol."""

    results: Mapping[str, EvaluationResult]  # by label; the others are compared with the first

    @property
    def first(self) -> EvaluationResult:
        """The first result."""
        return next(iter(self.results.values()))

    @property
    def title(self) -> str:
        """Data set and prompt, such as ``"AIM-500, box"``."""
        return ", ".join(part for part in (self.first.dataset, self.first.prompt) if part)

    def cautions(self) -> list[str]:
        """Return sentences about what limits the comparison."""
        results = self.results.values()
        found = []
        if len({frozenset(i.name for i in r.images) for r in results}) > 1:
            found.append("The runs have different images.")
        if len({(r.prompt_seed, r.info.get("prompts sha256")) for r in results}) > 1:
            found.append("The runs have different prompts.")
        return found + list(dict.fromkeys(filter(None, map(published_caution, results))))


def read_runs(runs: Sequence[tuple[str, Path]]) -> list[Comparison]:
    """Read the results of runs and group those that are comparable.

    Args:
        runs: For each run a name ("": use the names of its models) and a folder that holds
            results at any depth.

    Raises:
        MissingFileError: A folder holds no results.
        DataError: Results are damaged.
    """
    groups: dict[tuple, dict[str, EvaluationResult]] = {}
    for name, run in runs:
        folders = find_results(run)
        if not folders:
            raise MissingFileError(f"No results in {run}: no summary.json at or below it.")
        started = {path.parent for path in Path(run).rglob(PROGRESS)}
        unfinished = [str(folder) for folder in sorted(started.difference(folders))]
        if unfinished:
            logger.warning("Unfinished tests are left out: %s.", shorten(unfinished))
        results = {folder: read_result(folder) for folder in folders}
        several = len({result.model for result in results.values()}) > 1
        for folder, result in results.items():
            label = result.model or folder.name
            if name:
                label = f"{name}, {label}" if several else name
            key = (result.dataset, result.prompt, result.protocol, result.trimap_restricted)
            group = groups.setdefault(key, {})
            group[f"{label} ({folder})" if label in group else label] = result
    return [Comparison(group) for group in groups.values()]


def write_comparison(
    comparisons: Sequence[Comparison], output_dir: str | Path, num_images: int = 6
) -> list[Path]:
    """Write ``report.md``, ``report.tex``, ``report.html`` and contact sheets.

    Args:
        comparisons: What to show.
        output_dir: Folder of the report.
        num_images: Images shown for each comparison; 0: none.

    Returns:
        The paths of the three documents.

    Raises:
        OutputError: The folder is not writable, or an output is also an input.
    """
    output_dir = Path(output_dir)
    sheets = [
        output_dir / f"{number:02d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', comparison.title)}.jpg"
        for number, comparison in enumerate(comparisons, 1)
    ]
    documents = [output_dir / name for name in DOCUMENTS]
    images = [i for c in comparisons for result in c.results.values() for i in result.images]
    check_not_read(
        [*sheets, *documents],
        (path for i in images for path in (i.alpha_path, i.pred_path, i.image_path) if path),
    )
    sections = [Section(text=f"{UNITS} Rows marked as {PUBLISHED_NOTE} are the paper's.")]
    for path, comparison in zip(sheets, comparisons, strict=True):
        rows = choose_images(comparison, num_images)
        sheet = write_sheet(rows, path, tile=192) if rows else None
        sections.append(_section(comparison, sheet))
    for path in documents:
        write_text(path, render(path.name, "Evaluation", sections))
    return documents


def _section(comparison: Comparison, sheet: Path | None) -> Section:
    first = comparison.first
    protocol = get_protocol(first.protocol)
    pixels = "the unknown pixels of the trimaps" if first.trimap_restricted else "all pixels"
    rows = {label: result.scores for label, result in comparison.results.items()}
    published = published_rows(first)  # the same for all results of the comparison
    comparable = {k: rows[k] for k, r in comparison.results.items() if has_published_size(r)}
    tables = [metrics_table({**rows, **published})]
    differences = difference_rows(rows, dict(list(rows.items())[:1]))
    differences += difference_rows(comparable, published)
    if differences:
        tables.append(Table(["", *METRICS], differences, title="Relative differences:"))
    items = []
    for label, result in comparison.results.items():
        facts = {k: v for k, v in list_facts(result).items() if k not in _SHARED_FACTS}
        items.append(f"{label}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
    return Section(
        title=comparison.title,
        text=f"Protocol {protocol.name} ({protocol.description}), over {pixels}.",
        tables=tables,
        notes=comparison.cautions(),
        items=items,
        image=sheet,
        caption=f"{comparison.title}: hard images, and images on which the runs differ.",
    )


def choose_images(comparison: Comparison, count: int) -> list[dict[str, ImageScore]]:
    """Choose images to show: hard ones, and ones on which the runs differ.

    Half of them have the largest mean SAD, the others the largest differences in SAD. Images that
    some runs lack, or whose truth or mattes are no longer on disk, are not chosen.

    Returns:
        For each image, scores by the label of the run.
    """
    tables = {label: {i.name: i for i in r.images} for label, r in comparison.results.items()}
    names = set.intersection(*map(set, tables.values()))
    rows = [{label: table[name] for label, table in tables.items()} for name in sorted(names)]
    rows = [row for row in rows if _has_files(row)]

    def sads(row: Mapping[str, ImageScore]) -> list[float]:
        return [image.scores["SAD"] for image in row.values()]

    num_hard = (count + 1) // 2 if len(tables) > 1 else count
    chosen = sorted(rows, key=lambda row: -float(np.mean(sads(row))))[:num_hard]
    rest = [row for row in rows if row not in chosen]
    rest.sort(key=lambda row: min(sads(row)) - max(sads(row)))
    return chosen + rest[: count - num_hard]


def _has_files(row: Mapping[str, ImageScore]) -> bool:
    paths = (next(iter(row.values())).alpha_path, *(image.pred_path for image in row.values()))
    return all(path and Path(path).is_file() for path in paths)
