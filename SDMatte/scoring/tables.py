"""Tables of scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from SDMatte.scoring.metrics import METRICS

DISPLAY_SCALE = {"MSE": 1000.0, "MAD": 1000.0}
"""Factors used in tables on the command line; all stored and returned values are raw."""


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows and is left-aligned, the others right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""  # a line above the table in reports

    def format(self, name: str = "pipe") -> str:
        """Format the table, with its cells escaped.

        Args:
            name: Format of `tabulate`: ``"pipe"`` (Markdown), ``"latex_booktabs"`` or ``"html"``.
        """
        header, *rows = (
            [_escape_pipe(cell) if name == "pipe" else " ".join(cell.split()) for cell in row]
            for row in (self.header, *self.rows)
        )
        alignment = ["left", *["right"] * (len(header) - 1)]
        return tabulate(rows, header, tablefmt=name, disable_numparse=True, colalign=alignment)


def escape_markdown(text: str) -> str:
    """Escape the characters that start HTML or a link; keep the text readable in a terminal."""
    return " ".join(text.split()).replace("<", r"\<").replace("[", r"\[")


def _escape_pipe(text: str) -> str:
    return escape_markdown(text).replace("|", r"\|")


def metrics_table(rows: Mapping[str, Mapping[str, float]], display: bool = False) -> Table:
    """Return a table of scores.

    Args:
        rows: Raw values by metric, for each label; the cell of a missing metric is empty.
        display: Whether to multiply MSE and MAD by 1000.
    """
    scale = DISPLAY_SCALE if display else {}
    digits = {k: 5 if k in DISPLAY_SCALE and not display else 2 for k in METRICS}
    lines = []
    for label, scores in rows.items():
        shown = {k: scores[k] * scale.get(k, 1) for k in METRICS if k in scores}
        lines.append([label, *(f"{shown[k]:.{digits[k]}f}" if k in shown else "" for k in METRICS)])
    return Table(["", *(f"{k} x{scale[k]:.0f}" if k in scale else k for k in METRICS)], lines)


def score_table(rows: Mapping[str, Mapping[str, float]], display: bool = False) -> str:
    """Format the `metrics_table` as Markdown."""
    return f"{metrics_table(rows, display).format()}\n"


def difference_rows(
    rows: Mapping[str, Mapping[str, float]], references: Mapping[str, Mapping[str, float]]
) -> list[list[str]]:
    """Compare scores with references; negative differences are better for all five metrics.

    Args:
        rows: Raw values by metric, for each label.
        references: Likewise. A cell is empty if a metric is missing or its reference is 0.

    Returns:
        For each pair of different labels, ``"LABEL against REFERENCE"`` and relative differences.
    """
    return [
        [f"{label} against {name}", *(_difference(scores.get(k), known.get(k)) for k in METRICS)]
        for label, scores in rows.items()
        for name, known in references.items()
        if label != name
    ]


def _difference(value: float | None, reference: float | None) -> str:
    if value is None or not reference:
        return ""
    return f"{100 * (value / reference - 1):+.1f} %"
