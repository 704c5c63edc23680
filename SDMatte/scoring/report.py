"""The report of one result."""

from pathlib import Path

from SDMatte.runtime.files import write_text
from SDMatte.scoring.document import Section, render
from SDMatte.scoring.metrics import METRICS
from SDMatte.scoring.protocols import get_protocol
from SDMatte.scoring.published import (
    PUBLISHED_NOTE,
    has_published_size,
    published_caution,
    published_rows,
)
from SDMatte.scoring.results import SUMMARY_PAGE, EvaluationResult, versions, write_result
from SDMatte.scoring.tables import Table, difference_rows, metrics_table

UNITS = "MSE and MAD plain; SAD, Grad and Conn / 1000; lower is better."


def write_report(result: EvaluationResult, output_dir: str | Path) -> None:
    """Write ``scores.csv``, ``summary.json`` and ``summary.md``.

    Raises:
        OutputError: The folder is not writable.
    """
    write_result(result, output_dir)
    write_text(Path(output_dir) / SUMMARY_PAGE, summarize(result))


def summarize(result: EvaluationResult) -> str:
    """Return a Markdown summary: the scores, how they were obtained, and published scores."""
    facts = {**list_facts(result), "versions": ", ".join(f"{k} {v}" for k, v in versions().items())}
    scores = Section(
        tables=[metrics_table({result.model or "prediction": result.scores})],
        notes=[UNITS],
        items=[f"{key}: {value}" for key, value in facts.items()],
    )
    return render("report.md", result.key, [scores, _compare_with_paper(result)])


def list_facts(result: EvaluationResult) -> dict[str, str]:
    """Return how the scores of a result were obtained, for reports."""
    protocol = get_protocol(result.protocol)
    return {
        "protocol": f"{protocol.name} ({protocol.description})",
        "pixels": "unknown pixels of the trimaps" if result.trimap_restricted else "all",
        "images": str(len(result.images)),
        "prompt": result.prompt or "unknown",
        "prompt seed": "none" if result.prompt_seed is None else str(result.prompt_seed),
        "model": result.model or "unknown",
        **{key: str(value) for key, value in result.info.items()},
    }


def _compare_with_paper(result: EvaluationResult) -> Section:
    published, caution = published_rows(result), published_caution(result)
    notes = [caution] if caution else []
    if not (published and has_published_size(result)):
        return Section(notes=notes)
    own = {f"{result.model or 'prediction'} (this run)": result.scores}
    return Section(
        title=f"Comparison with the paper ({PUBLISHED_NOTE})",
        tables=[
            metrics_table({**own, **published}),
            Table(["", *METRICS], difference_rows(own, published)),
        ],
        notes=notes,
    )
