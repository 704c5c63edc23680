"""The knobs: defaults, what is refused, and in which words."""

import pytest

from SDMatte.data import DataSettings
from SDMatte.errors import ConfigError


def test_defaults_are_the_published_ones():
    settings = DataSettings.of(None)
    assert settings == DataSettings() == DataSettings.of({}) == DataSettings.of(settings)
    assert settings.duplicate_prob == 1 and settings.blur_prob == 0.5 and settings.gray_prob == 0.2
    assert settings.blur_sizes == (20, 30, 40, 50, 60) and settings.kernel_sizes == (15, 29)
    assert settings.mask_threshold == (0.01, 1) and settings.psm == "gauss"
    assert (settings.jitter(True), settings.jitter(False)) == (0.01, 0)
    assert (settings.radius(True), settings.radius(False)) == (25, 35)


def test_what_is_not_published_is_off():
    settings = DataSettings()
    for name in ("flip_prob", "brightness", "contrast", "saturation", "hue", "soften_prob",
                 "jpeg_prob", "box_loosen", "cache_mb"):  # fmt: skip
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
        ("duplicate", 1, "Unknown data settings duplicate; known are duplicate_prob, "),
        ("duplicate_prob", 2, "duplicate_prob is a probability, 2 is not"),
        ("flip_prob", -0.1, "flip_prob is a probability"),
        ("jpeg_prob", None, "jpeg_prob is a probability, None"),
        ("soften_prob", "often", "soften_prob is a probability, 'often'"),
        ("gray_prob", float("nan"), "gray_prob is a probability"),
        ("blur_sizes", 20, "blur_sizes must be a list of numbers"),
        ("blur_sizes", [], "blur_sizes must be a list of numbers"),
        ("blur_sizes", [20, 0], "blur_sizes takes whole numbers from 1 to 10000, not 0"),
        ("kernel_sizes", [9, 3], "kernel_sizes must be a smallest and a largest value"),
        ("kernel_sizes", [3, 5, 7], "kernel_sizes must be a smallest and a largest value"),
        ("kernel_sizes", [2.5, 3], "kernel_sizes takes whole numbers of at least 1, not 2.5"),
        ("mask_threshold", [0, 1], "mask_threshold must be a smallest"),
        ("soften_sigma", "12", "soften_sigma must be a list of numbers"),
        ("jpeg_quality", [50, 101], r"at most 100, not \(50, 101\)"),
        ("jpeg_quality", [50.5, 60], "jpeg_quality takes whole numbers of at least 1, not 50.5"),
        ("mask_threshold", [0.5, 1.5], r"above 0 and at most 1, not \(0.5, 1.5\)"),
        ("kernel_sizes", [15, 10**6], "kernel_sizes must be .* at most 1000"),
        ("blur_sizes", [10**9], "blur_sizes takes whole numbers from 1 to 10000"),
        ("blur_sizes", [True], "blur_sizes must be a list of numbers"),
        ("point_radius", 1e9, "at most 10000"),
        ("size_multiple", 0, "size_multiple takes whole numbers of at least 1"),
        ("psm", "square", "psm must be 'gauss' or 'circle', not 'square'"),
        ("decode", "fast", "decode must be 'full' or 'reduced', not 'fast'"),
        ("keep_aspect", 1, "keep_aspect must be true or false, not 1"),
        ("point_radius", 0, "point_radius must be larger than 0 and at most 10000, not 0"),
        ("point_radius", "25", "point_radius must be larger than 0 and at most 10000, not '25'"),
        ("box_jitter", 3, r"box_jitter must lie in \[0, 1\], not 3"),
        ("box_loosen", -1, r"box_loosen must lie in \[0, 10\], not -1"),
        ("box_loosen", None, r"box_loosen must lie in \[0, 10\], not None"),
        ("brightness", 1.5, r"brightness must lie in \[0, 1\]"),
        ("hue", 0.6, r"hue must lie in \[0, 0.5\], not 0.6"),
        ("cache_mb", -1, "cache_mb must be at least 0, not -1"),
    ],
)
def test_refuses(name, value, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        DataSettings.of({name: value})
    assert "\n" not in str(caught.value)
