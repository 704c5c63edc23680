"""The guide shows the pictures that its commands make."""

import re
from pathlib import Path

import pytest
from scripts import load_script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def commands():
    return load_script("tools/make_docs_images.py").COMMANDS


def test_the_guide_names_the_commands_that_made_its_pictures(commands):
    text = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    text = " ".join(text.replace("\\\n", " ").split())
    for command in commands:
        assert command in text


@pytest.mark.parametrize("guide", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_pictures_of_the_guides_are_there_and_small(guide):
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", guide.read_text(encoding="utf-8")):
        assert 0 < (guide.parent / name).stat().st_size < 200_000
