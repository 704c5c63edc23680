"""Several evaluations side by side, and beside the published numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SDMatte.errors import MissingFileError
from SDMatte.images import sheets as pictures
from SDMatte.images.io import read_alpha, read_image, shorten, write_image
from SDMatte.runtime.files import check_not_read, write_text
from SDMatte.scoring.document import (
    Block,
    Bullets,
    Heading,
    Paragraph,
    Picture,
    to_html,
    to_latex,
    to_markdown,
)
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.report import (
    PUBLISHED_NOTE,
    difference_table,
    facts,
    metrics_table,
    of_published_size,
    published_caution,
    published_rows,
)
from SDMatte.scoring.results import (
    PROGRESS,
    EvaluationResult,
    ImageScore,
    find_results,
    read_result,
)
from SDMatte.scoring.tables import Table

logger = logging.getLogger(__name__)

TITLE = "Evaluation"
DOCUMENTS = ("report.md", "report.tex", "report.html")
_SHARED_FACTS = ("protocol", "pixels", "model")


@dataclass(frozen=True)
class Comparison:
    """Results of one set and prompt under one protocol.

    Attributes:
        results: Label -> result; the first one is what the others are compared with.
    """

    results: Mapping[str, EvaluationResult]

    @property
    def first(self) -> EvaluationResult:
        """The first result."""
        return next(iter(self.results.values()))

    @property
    def title(self) -> str:
        """``"AIM-500, box"``."""
        return ", ".join(part for part in (self.first.dataset, self.first.prompt) if part)

    def cautions(self) -> list[str]:
        """What keeps the rows from being comparable, in sentences."""
        found = []
        if len({tuple(sorted(p.name for p in r.pictures)) for r in self.results.values()}) > 1:
            found.append("The runs are not of the same pictures.")
        if len({_prompt_origin(r) for r in self.results.values()}) > 1:
            found.append("The runs did not see the same prompts.")
        found += dict.fromkeys(filter(None, map(published_caution, self.results.values())))
        return found


def read_runs(runs: Sequence[tuple[str, Path]]) -> list[Comparison]:
    """Reads the results of runs, and puts together what belongs together.

    Args:
        runs: For each run a name (or "", for the names of its models) and a folder that holds
            results, at any depth.

    Raises:
        DataError: A folder holds no results, or they are damaged.
    """
    groups: dict[tuple, dict[str, EvaluationResult]] = {}
    for name, run in runs:
        folders = find_results(run)
        if not folders:
            raise MissingFileError(f"There are no results in {run}: no summary.json, nor below it.")
        started = {path.parent for path in Path(run).rglob(PROGRESS)}
        unfinished = [str(folder) for folder in sorted(started.difference(folders))]
        if unfinished:
            logger.warning(
                "Tests without scores left out, they have not ended: %s.", shorten(unfinished)
            )
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
    """Writes ``report.md``, ``report.tex``, ``report.html`` and sheets of pictures.

    Args:
        comparisons: What to show.
        output_dir: Where to.
        num_images: How many pictures each set and prompt shows; 0 for none.

    Returns:
        The three documents.

    Raises:
        OutputError: The folder cannot be written to, or a file in it is one that is read.
    """
    output_dir = Path(output_dir)
    sheets = [
        output_dir / f"{number:02d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', comparison.title)}.jpg"
        for number, comparison in enumerate(comparisons, 1)
    ]
    scores = [p for c in comparisons for result in c.results.values() for p in result.pictures]
    check_not_read(
        [*sheets, *(output_dir / name for name in DOCUMENTS)],
        (path for p in scores for path in (p.alpha_path, p.pred_path, p.image_path) if path),
    )
    blocks: list[Block] = [
        Heading(TITLE, 1),
        Paragraph(
            "MSE and MAD plain; SAD, Grad and Conn / 1000; lower is better. Rows marked as "
            f"{PUBLISHED_NOTE} are the paper's."
        ),
    ]
    for path, comparison in zip(sheets, comparisons, strict=True):
        blocks += _blocks(comparison)
        if num_images and draw_sheet(comparison, path, num_images):
            caption = f"{comparison.title}: pictures that are hard, or that divide the runs."
            blocks.append(Picture(path, caption))
    texts = (to_markdown(blocks), to_latex(blocks), to_html(blocks, TITLE))
    documents = [output_dir / name for name in DOCUMENTS]
    for path, text in zip(documents, texts, strict=True):
        write_text(path, text)
    return documents


def draw_sheet(comparison: Comparison, path: Path, count: int, tile: int = 192) -> bool:
    """Draws image, truth and the matte of each run, a row a picture.

    Half of the pictures have the largest SAD on average, the others the largest differences of
    SAD between the runs.

    Returns:
        Whether there was anything to draw: mattes and truths have to be where they were.
    """
    chosen = _choose(comparison, count)
    labels: list[str] = []
    for row in chosen:
        labels += [next(iter(row.values())).name, "truth"]
        labels += [f"{label}, SAD {p.scores['SAD']:.2f}" for label, p in row.items()]
    if not chosen:
        return False
    cells = (cell for row in chosen for cell in _sheet_row(row))
    columns = 2 + len(comparison.results)
    write_image(path, pictures.contact_sheet(cells, labels, columns=columns, tile=tile))
    return True


def _sheet_row(row: Mapping[str, ImageScore]) -> Iterator[np.ndarray]:
    first = next(iter(row.values()))
    has_image = first.image_path and Path(first.image_path).is_file()
    yield read_image(first.image_path) if has_image else np.zeros((1, 1))
    yield read_alpha(first.alpha_path)
    for picture in row.values():
        yield read_alpha(picture.pred_path)


def _choose(comparison: Comparison, count: int) -> list[dict[str, ImageScore]]:
    """Rows of label -> picture, of pictures that all runs have and whose files are there."""
    tables = {label: {p.name: p for p in r.pictures} for label, r in comparison.results.items()}
    names = set.intersection(*map(set, tables.values()))
    rows = {n: {label: table[n] for label, table in tables.items()} for n in sorted(names)}

    def sads(name: str) -> list[float]:
        return [picture.scores["SAD"] for picture in rows[name].values()]

    hard = sorted(rows, key=lambda n: -float(np.mean(sads(n))))
    divisive = sorted(rows, key=lambda n: float(min(sads(n)) - max(sads(n))))
    share = (count + 1) // 2 if len(tables) > 1 else count
    chosen = [n for n in hard if _has_files(rows[n])][:share]
    chosen += [n for n in divisive if n not in chosen and _has_files(rows[n])][: count - share]
    return [rows[name] for name in chosen]


def _has_files(row: Mapping[str, ImageScore]) -> bool:
    first = next(iter(row.values()))
    paths = (first.alpha_path, *(p.pred_path for p in row.values()))
    return all(path and Path(path).is_file() for path in paths)


def _blocks(comparison: Comparison) -> list[Block]:
    """The part of the document on one comparison."""
    first = comparison.first
    protocol = get_protocol(first.protocol)
    pixels = "the unknown pixels of the trimaps" if first.trimap_restricted else "all pixels"
    rows = {label: result.scores for label, result in comparison.results.items()}
    published = published_rows(first)  # the same for all: they share the set and the prompt
    comparable = {
        k: rows[k] for k, result in comparison.results.items() if of_published_size(result)
    }
    differences = [
        *difference_table(rows, dict(list(rows.items())[:1])).rows,
        *difference_table(comparable, published).rows,
    ]
    blocks: list[Block] = [
        Heading(comparison.title),
        Paragraph(f"Protocol {protocol.name} ({protocol.description}), over {pixels}."),
        metrics_table({**rows, **published}),
    ]
    if differences:
        blocks += [Paragraph("Relative differences:"), Table(["", *METRICS], differences)]
    blocks += [Paragraph(caution) for caution in comparison.cautions()]
    blocks.append(Bullets([_about(label, r) for label, r in comparison.results.items()]))
    return blocks


def _about(label: str, result: EvaluationResult) -> str:
    known = {k: v for k, v in facts(result).items() if k not in _SHARED_FACTS}
    return f"{label}: " + ", ".join(f"{key} {value}" for key, value in known.items())


def _prompt_origin(result: EvaluationResult) -> tuple:
    return result.prompt_seed, result.info.get("prompts sha256")
