"""Reports as Markdown, LaTeX and HTML, rendered from the templates beside this file."""

import base64
import mimetypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from tabulate import LATEX_ESCAPE_RULES

from SDMatte.runtime.files import read_error
from SDMatte.scoring.tables import Table, escape_markdown


@dataclass(frozen=True)
class Section:
    """A section of a report; empty parts are left out."""

    title: str = ""
    text: str = ""  # paragraph above the tables
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()  # paragraphs below the tables
    items: Sequence[str] = ()  # a list
    image: Path | None = None  # in the folder of the report
    caption: str = ""


def render(name: str, title: str, sections: Iterable[Section]) -> str:
    """Render a report. All texts are escaped.

    Args:
        name: ``"report.md"`` or ``"report.tex"``, which link to their images, or
            ``"report.html"``, which embeds them.
        title: Heading of the report.
        sections: Its sections.

    Raises:
        DataError: An image is unreadable.
    """
    escape_text, table_format = _FORMATS[Path(name).suffix]

    def finalize(value: Any) -> Markup:
        return value if isinstance(value, Markup) else Markup(escape_text(str(value)))

    environment = Environment(
        loader=PackageLoader("SDMatte.scoring"),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=True,
        finalize=finalize,
    )
    environment.filters["table"] = lambda table: Markup(table.format(table_format))
    environment.filters["data_uri"] = _data_uri
    return str(environment.get_template(name).render(title=title, sections=list(sections)))


def escape_latex(text: str) -> str:
    """Escape a text for LaTeX; allow breaks every 8 characters in words of 32 or more."""
    parts = re.split(r"(\S{32,})", text)  # every second part is a long word
    for index in range(1, len(parts), 2):
        parts[index] = re.sub(r"(.{8})(?=.)", "\\1\0", parts[index])
    rules = {**LATEX_ESCAPE_RULES, "\0": r"\allowbreak{}"}
    return "".join(rules.get(c, c) for c in "".join(parts))


_FORMATS = {
    ".md": (escape_markdown, "pipe"),
    ".tex": (escape_latex, "latex_booktabs"),
    ".html": (escape, "html"),
}


def _data_uri(path: Path) -> str:
    try:
        content = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise read_error(path, error) from error
    return f"data:{mimetypes.guess_type(path.name)[0]};base64,{content}"
