"""The guide shows the pictures that its commands make."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def commands(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "script")
    path = ROOT / "script" / "make_docs_pictures.py"
    spec = importlib.util.spec_from_file_location("make_docs_pictures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.COMMANDS
    sys.modules.pop("check_large_picture", None)


def test_the_guide_names_the_commands_that_made_its_pictures(commands):
    text = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    text = " ".join(text.replace("\\\n", " ").split())
    for command in commands:
        assert command in text


@pytest.mark.parametrize("guide", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_pictures_of_the_guides_are_there_and_small(guide):
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", guide.read_text(encoding="utf-8")):
        assert 0 < (guide.parent / name).stat().st_size < 200_000
