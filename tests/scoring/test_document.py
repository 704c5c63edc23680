"""All texts of a report are escaped."""

import re
from pathlib import Path

from SDMatte.scoring.document import Section, render
from SDMatte.scoring.tables import format_table

NASTY = '<script>alert("1")</script> & a|b_c 50% #1 {x} \\end ~^ $5 [l](u)'


def test_markdown_has_no_html_and_complete_tables():
    table = format_table(["", "SAD"], [[NASTY, "1.00"], ["two\nlines", ""]])
    section = Section(NASTY, NASTY, [table], [NASTY], [NASTY, "x"], Path("out/a b.png"), NASTY)
    text = render(NASTY, [section, Section()])
    assert text.count(r"\<script>") == 7 and not re.search(r"(?<!\\)[<\[][sl]", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "](a%20b.png)" in text
    assert text.startswith("# ") and "\n\n\n" not in text
