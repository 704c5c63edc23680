"""A short document, written once, as Markdown, LaTeX or HTML; texts in it are escaped."""

from __future__ import annotations

import base64
import html
import mimetypes
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from SDMatte.runtime.files import read_error
from SDMatte.scoring.tables import Table, escape_latex, escape_markdown


@dataclass(frozen=True)
class Heading:
    """A heading of level 1, 2 or 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A picture file, which lies in the document's folder."""

    path: Path
    caption: str


Block = Heading | Paragraph | Bullets | Picture | Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border-bottom: 1px solid #ccc; padding: .2em .8em; text-align: left; }
img { max-width: 100%; }
figcaption { color: #555; }
"""


def to_markdown(blocks: Iterable[Block]) -> str:
    """Writes blocks as Markdown; pictures are linked."""

    def write(block: Block) -> str:
        match block:
            case Heading():
                return f"{'#' * block.level} {escape_markdown(block.text)}\n"
            case Paragraph():
                return f"{escape_markdown(block.text)}\n"
            case Bullets():
                return "".join(f"- {escape_markdown(item)}\n" for item in block.items)
            case Picture():
                return f"![{escape_markdown(block.caption)}]({quote(block.path.name)})\n"
            case Table():
                return block.markdown()

    return "\n".join(map(write, blocks))


def to_latex(blocks: Iterable[Block]) -> str:
    """Writes blocks as a LaTeX document that compiles by itself, beside its pictures."""

    def write(block: Block) -> str:
        match block:
            case Heading():
                name = ("section*", "subsection*", "subsubsection*")[block.level - 1]
                return f"\\{name}{{{escape_latex(block.text)}}}\n"
            case Paragraph():
                return f"{_breakable(block.text)}\n"
            case Bullets():
                items = "".join(f"  \\item {_breakable(item)}\n" for item in block.items)
                return f"\\begin{{itemize}}\n{items}\\end{{itemize}}\n"
            case Picture():
                size = "width=\\linewidth,height=.9\\textheight,keepaspectratio"
                return (
                    f"\\noindent\\includegraphics[{size}]{{{block.path.name}}}\n\n"
                    f"{_breakable(block.caption)}\n"
                )
            case Table():
                return f"\\begin{{center}}\n\\small\n{block.latex()}\\end{{center}}\n"

    body = "\n".join(map(write, blocks))
    return (
        "\\documentclass{article}\n"
        "\\usepackage[T1]{fontenc}\n"
        "\\usepackage[margin=2cm]{geometry}\n"
        "\\usepackage{booktabs,graphicx}\n"
        "\\sloppy\n"  # where a hash or a path breaks, it may leave a short line before it
        f"\\begin{{document}}\n\n{body}\n\\end{{document}}\n"
    )


def _breakable(text: str) -> str:
    """Escape a text for LaTeX, and let hashes, paths and other long words break anywhere."""
    parts = re.split(r"(\S{32,})", text)  # every second one is a long word
    for index in range(1, len(parts), 2):
        word = parts[index]
        chunks = (word[start : start + 8] for start in range(0, len(word), 8))
        parts[index] = r"\allowbreak{}".join(map(escape_latex, chunks))
    parts[::2] = map(escape_latex, parts[::2])
    return "".join(parts)


def to_html(blocks: Iterable[Block], title: str) -> str:
    """Writes blocks as one HTML file that needs no other: pictures are inside.

    Raises:
        DataError: A picture cannot be read.
    """

    def write(block: Block) -> str:
        match block:
            case Heading():
                return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>\n"
            case Paragraph():
                return f"<p>{html.escape(block.text)}</p>\n"
            case Bullets():
                items = "".join(f"<li>{html.escape(item)}</li>\n" for item in block.items)
                return f"<ul>\n{items}</ul>\n"
            case Picture():
                caption = html.escape(block.caption)
                return (
                    f'<figure><img src="{_data_uri(block.path)}" alt="{caption}">'
                    f"<figcaption>{caption}</figcaption></figure>\n"
                )
            case Table():
                return block.html()

    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{''.join(map(write, blocks))}</body>\n</html>\n"
    )


def _data_uri(path: Path) -> str:
    try:
        content = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise read_error(path, error) from error
    return f"data:{mimetypes.guess_type(path.name)[0]};base64,{content}"
