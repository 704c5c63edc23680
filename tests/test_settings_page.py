"""docs/settings.md is current."""

from scripts import load_script


def test_the_page_of_settings_is_current():
    tool = load_script("tools/make_settings_page.py")
    current = tool.PAGE.read_text(encoding="utf-8")
    assert current == tool.make_page(), "run `python tools/make_settings_page.py`"
