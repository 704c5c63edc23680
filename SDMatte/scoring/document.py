"""Reports in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from SDMatte.scoring.tables import escape_markdown


@dataclass(frozen=True)
class Section:
    """A section of a report; empty parts are left out."""

    title: str = ""
    text: str = ""
    tables: Sequence[str] = ()  # in Markdown, see SDMatte.scoring.tables
    notes: Sequence[str] = ()  # paragraphs below the tables
    items: Sequence[str] = ()  # of a list
    image: Path | None = None  # in the folder of the report
    caption: str = ""


def render(title: str, sections: Iterable[Section]) -> str:
    """Render a report in Markdown, which links its images. All texts are escaped."""
    parts = [f"# {escape_markdown(title)}"]
    for section in sections:
        parts += [f"## {escape_markdown(section.title)}"] if section.title else []
        parts += [escape_markdown(section.text)] if section.text else []
        parts += [table.rstrip("\n") for table in section.tables]
        parts += map(escape_markdown, section.notes)
        items = "\n".join(f"- {escape_markdown(item)}" for item in section.items)
        parts += [items] if items else []
        if section.image is not None:
            parts.append(f"![{escape_markdown(section.caption)}]({quote(section.image.name)})")
    return "\n\n".join(parts) + "\n"
