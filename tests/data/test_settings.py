"""DataSettings: defaults, invalid values, and the table in data/README.md."""

from pathlib import Path

import pytest

from SDMatte.data import DataSettings
from SDMatte.errors import ConfigError

README = Path(__file__).resolve().parents[2] / "data/README.md"


def test_defaults_are_the_published_ones():
    settings = DataSettings.of(None)
    assert settings == DataSettings() == DataSettings.of({}) == DataSettings.of(settings)
    assert settings.duplicate_prob == 1 and settings.blur_prob == 0.5 and settings.gray_prob == 0.2
    assert settings.blur_sizes == (20, 30, 40, 50, 60) and settings.kernel_sizes == (15, 29)
    assert settings.mask_threshold == (0.01, 1) and settings.psm == "gauss"
    assert (settings.jitter(True), settings.jitter(False)) == (0.01, 0)
    assert (settings.radius(True), settings.radius(False)) == (25, 35)


def test_extensions_are_off():
    settings = DataSettings()
    for name in ("flip_prob", "brightness", "contrast", "saturation", "hue", "box_loosen",
                 "cache_mb"):  # fmt: skip
        assert getattr(settings, name) == 0, name
    assert settings.decode == "full" and not settings.keep_aspect


def test_own_values_and_lists():
    settings = DataSettings.of({"box_jitter": 0.2, "point_radius": 7, "kernel_sizes": [3, 5]})
    assert (settings.jitter(True), settings.jitter(False)) == (0.2, 0.2)
    assert (settings.radius(True), settings.radius(False)) == (7, 7)
    assert settings.kernel_sizes == (3, 5)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("duplicate", 1, "Unknown setting data.duplicate; did you mean duplicate_prob"),
        ("duplicate_prob", 2, "data.duplicate_prob must be at most 1; got 2"),
        ("flip_prob", -0.1, "flip_prob must be at least 0"),
        ("gray_prob", float("nan"), "gray_prob must be a finite number"),
        ("gray_prob", "often", "gray_prob must be a number; got 'often'"),
        ("blur_sizes", 20, "blur_sizes must be a list; got 20"),
        ("blur_sizes", [], "blur_sizes .*at least 1 item"),
        ("blur_sizes", [20, 0], "blur_sizes.1 must be at least 1; got 0"),
        ("blur_sizes", [10**9], "blur_sizes.* must be at most 10000"),
        ("blur_sizes", [True], "blur_sizes.* must be an integer"),
        ("kernel_sizes", [9, 3], "kernel_sizes must be in ascending order"),
        ("kernel_sizes", [3, 5, 7], "kernel_sizes .*at most 2 items"),
        ("kernel_sizes", [2.5, 3], "kernel_sizes.* must be an integer; got 2.5"),
        ("kernel_sizes", [15, 10**6], "kernel_sizes.1 must be at most 1000"),
        ("mask_threshold", [0, 1], "mask_threshold.* must be greater than 0"),
        ("mask_threshold", [0.5, 1.5], "mask_threshold.1 must be at most 1"),
        ("size_multiple", 0, "size_multiple must be at least 1"),
        ("psm", "square", "psm must be 'gauss' or 'circle'; got 'square'"),
        ("decode", "fast", "decode must be 'full' or 'reduced'; got 'fast'"),
        ("keep_aspect", 1, "keep_aspect must be True or False; got 1"),
        ("point_radius", 0, "point_radius must be greater than 0; got 0"),
        ("point_radius", 1e9, "point_radius must be at most 10000"),
        ("box_jitter", 3, "box_jitter must be at most 1; got 3"),
        ("box_loosen", None, "box_loosen must be a number; got None"),
        ("hue", 0.6, "hue must be at most 0.5; got 0.6"),
        ("cache_mb", -1, "cache_mb must be at least 0; got -1"),
        ("jpeg_prob", 0.5, "data no longer has jpeg_prob: remove it, or set it to 0"),
    ],
)
def test_invalid_values(name, value, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        DataSettings.of({name: value}, "data")
    assert "\n" not in str(caught.value)


def test_removed_settings_of_older_runs_are_accepted_where_they_were_off():
    old = {"soften_prob": 0.0, "soften_sigma": [0.5, 2.0], "jpeg_prob": 0, "jpeg_quality": [50, 95]}
    assert DataSettings.of({**old, "hue": 0.1}) == DataSettings(hue=0.1)


def test_the_readme_has_every_setting():
    text = README.read_text(encoding="utf-8")
    for name, field in DataSettings.model_fields.items():
        assert f"| `{name}` | `{field.default}` | {field.description} |" in text, name
