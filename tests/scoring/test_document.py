"""All texts are escaped in every format."""

import base64
import html.parser
import re

import numpy as np
import pytest

from SDMatte.errors import DataError
from SDMatte.images.io import write_image
from SDMatte.scoring.document import Section, escape_latex, render
from SDMatte.scoring.tables import Table

NASTY = '<script>alert("1")</script> & a|b_c 50% #1 {x} \\end ~^ $5 [l](u) << title >>'


@pytest.fixture
def section(tmp_path):
    return Section(
        title=NASTY,
        text=NASTY,
        tables=[Table(["", "SAD"], [[NASTY, "1.00"], ["two\nlines", ""]], title=NASTY)],
        notes=[NASTY],
        items=[NASTY, "x"],
        image=write_image(tmp_path / "a b.png", np.zeros((2, 3))),
        caption=NASTY,
    )


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_html_is_one_file_without_scripts(section):
    reader = Reader()
    reader.feed(render("report.html", NASTY, [section]))
    assert "script" not in reader.tags and "a" not in reader.tags and "link" not in reader.tags
    # Twice the title; heading, text, title of the table, cell, note, item, caption.
    assert reader.texts.count(NASTY) == 9
    assert "two lines" in reader.texts and reader.tags.count("tr") == 3
    kind, content = reader.images[0]["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == section.image.read_bytes()
    assert reader.images[0]["alt"] == NASTY


def test_latex(section):
    text = render("report.tex", NASTY, [section])
    escaped = escape_latex(NASTY)
    assert text.count(escaped) == 8
    assert not re.search(r"(?<!\\)[&%$#_~]", escaped) and not re.search(r"\^(?!\{)", escaped)
    assert r"\textbackslash{}end" in escaped and r"\{x\}" in escaped
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lr}", "{a b.png}"):
        assert part in text
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened


def test_long_words_break_in_latex():
    digest = "0123456789abcdef" * 4
    section = Section(text=f"sha256 {digest}_a", items=[f"/a/{digest}.pth"])
    text = render("report.tex", "x", [section])
    assert max(map(len, re.split(r"\\allowbreak\{\}|\s", text.partition("document}")[2]))) < 32
    assert f"sha256 {digest}\\_a" in text.replace(r"\allowbreak{}", "")


def test_markdown_has_no_html_and_complete_tables(section):
    text = render("report.md", NASTY, [section, Section()])
    assert text.count(r"\<script>") == 8 and not re.search(r"(?<!\\)[<\[][sl]", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "](a%20b.png)" in text
    assert text.startswith("# ") and "\n\n\n" not in text


def test_missing_image_is_named(section):
    section.image.unlink()
    with pytest.raises(DataError, match=r"a b\.png"):
        render("report.html", "x", [section])
