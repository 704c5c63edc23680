"""Tables of scores in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from SDMatte.scoring.metrics import METRICS

DISPLAY_SCALE = {"MSE": 1000.0, "MAD": 1000.0}
"""Factors of the tables on the command line; all stored and returned values are raw."""


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table of escaped cells; all columns but the first are right-aligned."""
    escaped = [[escape_markdown(c).replace("|", r"\|") for c in row] for row in (header, *rows)]
    alignment = ["left", *["right"] * (len(header) - 1)]
    table = tabulate(
        escaped[1:], escaped[0], tablefmt="pipe", disable_numparse=True, colalign=alignment
    )
    return f"{table}\n"


def escape_markdown(text: str) -> str:
    """Escape what starts HTML or a link; the rest stays readable in a terminal."""
    return " ".join(text.split()).replace("<", r"\<").replace("[", r"\[")


def display_name(metric: str) -> str:
    """Return the heading of a metric in the units of `to_display`, such as ``"MSE x1000"``."""
    return f"{metric} x{DISPLAY_SCALE[metric]:.0f}" if metric in DISPLAY_SCALE else metric


def to_display(scores: Mapping[str, float]) -> dict[str, float]:
    """Convert raw scores to the units of the tables on the command line."""
    return {key: value * DISPLAY_SCALE.get(key, 1) for key, value in scores.items()}


def score_table(rows: Mapping[str, Mapping[str, float]], display: bool = False) -> str:
    """Format a table of scores.

    Args:
        rows: Label to metric to raw value; the cell of a missing metric is empty.
        display: Whether to multiply MSE and MAD by 1000.
    """
    digits = {k: 2 if display or k not in DISPLAY_SCALE else 5 for k in METRICS}
    lines = []
    for label, scores in rows.items():
        shown = to_display(scores) if display else scores
        lines.append([label, *(f"{shown[k]:.{digits[k]}f}" if k in shown else "" for k in METRICS)])
    return format_table(["", *(display_name(k) if display else k for k in METRICS)], lines)


def difference_table(
    rows: Mapping[str, Mapping[str, float]], references: Mapping[str, Mapping[str, float]]
) -> str:
    """Format relative differences; below zero is better, for all five metrics.

    Args:
        rows: Label to metric to raw value.
        references: Likewise. A cell is empty if a metric is missing or its reference is 0.

    Returns:
        A line for each pair of different labels; "" if there is none.
    """
    lines = [
        [f"{label} against {name}", *(_difference(scores.get(k), known.get(k)) for k in METRICS)]
        for label, scores in rows.items()
        for name, known in references.items()
        if label != name
    ]
    return format_table(["", *METRICS], lines) if lines else ""


def _difference(value: float | None, reference: float | None) -> str:
    if value is None or not reference:
        return ""
    return f"{100 * (value / reference - 1):+.1f} %"
