"""Tables of text for Markdown, LaTeX and HTML; whatever stands in a cell is escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; all others are set to the right.

    Attributes:
        heads: The first line.
        rows: The others, each as long as the first.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table for Markdown, also fit for a terminal."""
        return self._format("pipe", lambda text: escape_markdown(text).replace("|", r"\|"))

    def latex(self) -> str:
        """A ``tabular`` that needs the package booktabs."""
        table = self._format("latex_raw", escape_latex)  # its booktabs escape otherwise
        for rule in ("toprule", "midrule", "bottomrule"):
            table = table.replace(r"\hline", f"\\{rule}", 1)
        return table

    def html(self) -> str:
        """A ``<table>``."""
        return self._format("unsafehtml", html.escape)

    def _format(self, name: str, escape: Callable[[str], str]) -> str:
        lines = [[escape(" ".join(c.split())) for c in row] for row in (self.heads, *self.rows)]
        alignment = ("left", *["right"] * (len(self.heads) - 1))
        table = tabulate(
            lines[1:], lines[0], tablefmt=name, disable_numparse=True, colalign=alignment
        )
        return f"{table}\n"


def escape_markdown(text: str) -> str:
    """Keeps a text from being HTML or a link; the rest stays as people read it in a terminal."""
    return " ".join(text.split()).replace("<", r"\<").replace("[", r"\[")


def escape_latex(text: str) -> str:
    """Writes a text so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(c, c) for c in text)
