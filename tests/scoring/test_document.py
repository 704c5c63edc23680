"""Documents: what a text holds is text, in every format."""

import base64
import html.parser
import re

import numpy as np
import pytest

from SDMatte.errors import DataError
from SDMatte.images.io import write_image
from SDMatte.scoring.document import (
    Bullets,
    Heading,
    Paragraph,
    Picture,
    to_html,
    to_latex,
    to_markdown,
)
from SDMatte.scoring.tables import Table, escape_latex

NASTY = '<script>alert("1")</script> & a|b_c 50% #1 {x} \\end ~^ $5 [l](u)'


@pytest.fixture
def blocks(tmp_path):
    path = write_image(tmp_path / "a b.png", np.zeros((2, 3)))
    table = Table(["", "SAD"], [[NASTY, "1.00"], ["two\nlines", ""]])
    return [
        Heading(NASTY, 1), Paragraph(NASTY), Bullets([NASTY, "x"]), Picture(path, NASTY), table
    ]  # fmt: skip


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.pictures = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_html_is_one_file_and_runs_nothing(blocks):
    reader = Reader()
    reader.feed(to_html(blocks, NASTY))
    assert "script" not in reader.tags and "a" not in reader.tags and "link" not in reader.tags
    assert reader.texts.count(NASTY) == 6  # title, heading, paragraph, bullet, caption, cell
    assert "two lines" in reader.texts and reader.tags.count("tr") == 3
    kind, content = reader.pictures[0]["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == blocks[3].path.read_bytes()
    assert reader.pictures[0]["alt"] == NASTY


def test_latex_escapes_what_it_would_obey(blocks):
    text = to_latex(blocks)
    escaped = escape_latex(NASTY)
    assert text.count(escaped) == 5
    assert not re.search(r"(?<!\\)[&%$#_~^<>|]", escaped)
    assert r"\textbackslash{}end" in escaped and r"\{x\}" in escaped
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lr}", "{a b.png}"):
        assert part in text
    environments = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    opened = []
    for kind, name in environments:
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened


def test_long_words_break_in_latex():
    digest = "0123456789abcdef" * 4
    text = to_latex([Paragraph(f"sha256 {digest}_a"), Bullets([f"/a/{digest}.pth"])])
    assert max(map(len, re.split(r"\\allowbreak\{\}|\s", text.partition("document}")[2]))) < 32
    assert f"sha256 {digest}\\_a" in text.replace(r"\allowbreak{}", "")


def test_markdown_has_no_html_and_whole_tables(blocks):
    text = to_markdown(blocks)
    assert text.count(r"\<script>") == 5 and not re.search(r"(?<!\\)[<\[][sl]", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "](a%20b.png)" in text
    assert text.startswith("# ")


def test_a_picture_that_is_gone_is_named(blocks):
    blocks[3].path.unlink()
    with pytest.raises(DataError, match=r"a b\.png"):
        to_html(blocks, "x")
