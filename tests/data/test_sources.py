"""Reduced decoding and the cache: what may change, and what may not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_trees import (
    SETTINGS,
    disc,
    random_image,
    write_aim,
    write_backgrounds,
    write_composition,
)

from SDMatte.data import MattingDataset, Sample
from SDMatte.data.sources import SourceReader
from SDMatte.errors import DataError
from SDMatte.images.io import write_image

MAPS = ("alpha", "trimap", "mask", "bbox_mask")


def tensors(sample):
    return {key: value for key, value in sample.items() if torch.is_tensor(value)}


def differing(first, second):
    return {k for k, v in tensors(first).items() if not torch.equal(v, second[k])}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A smooth foreground of 403 x 603 pixels, its disc, and a background; JPEG and PNG."""
    root = tmp_path_factory.mktemp("large")
    colors = np.stack(np.meshgrid(np.linspace(0, 1, 603), np.linspace(0, 1, 403)), -1)
    write_image(root / "fg.jpg", np.dstack([colors, 1 - colors[..., 0]]))
    write_image(root / "alpha.png", disc(403, 603, 120))
    write_image(root / "bg.jpg", np.dstack([colors[::-1, ::-1] / 4, colors[..., 0] / 3]))
    return root


def sample_set(root, sample, decode, size=64, **settings):
    return MattingDataset(
        samples=[sample], root=root, size=size, settings={**SETTINGS, "decode": decode, **settings}
    )


COMPOSITE = Sample("s", "fg.jpg", "alpha.png", background="bg.jpg", is_trans=0)
NATURAL = Sample("s", "fg.jpg", "alpha.png", is_trans=0)


@pytest.mark.parametrize("sample", [COMPOSITE, NATURAL])
def test_reduced_samples_are_close_to_full_ones(large, sample):
    full, reduced = (sample_set(large, sample, decode) for decode in ("full", "reduced"))
    seen = set()
    for epoch in range(6):
        a, b = full[epoch, 0], reduced[epoch, 0]
        assert "image" in differing(a, b)
        assert torch.equal(a["hw"], b["hw"]) and a["hw"][0] == 403
        for key in ("image", "alpha"):
            assert (a[key] - b[key]).abs().mean() < 0.02, key
        assert (a["bbox_coords"] - b["bbox_coords"]).abs().max() <= 1.01 / 64
        for key in MAPS[1:]:
            assert (a[key] != b[key]).float().mean() < 0.03, key
        assert (a["image"][0] == a["image"][1]).all() == (b["image"][0] == b["image"][1]).all()
        seen.add(tuple(a["bbox_coords"].round(decimals=1).tolist()))
    assert len(seen) == (2 if sample.background else 1)  # either copy


def test_images_that_are_not_much_larger_are_not_reduced(large):
    for sample in (COMPOSITE, NATURAL):
        full, reduced = (sample_set(large, sample, decode, 256) for decode in ("full", "reduced"))
        assert not differing(full[0], reduced[0])


def test_transparency_is_measured_on_enough_pixels(tmp_path):
    # At an eighth of its size the disc would have no interior, and count as opaque.
    for name, factor, expected in (("glass", 0.5, 1), ("wood", 1, 0)):
        write_image(tmp_path / f"{name}.png", disc(600, 600, 40) * factor)
        write_image(tmp_path / "i.jpg", random_image(0, 600, 600))
        dataset = sample_set(
            tmp_path, Sample("s", "i.jpg", f"{name}.png"), "reduced", size=16, cache_mb=1
        )
        assert [int(dataset[i, 0]["is_trans"]) for i in range(2)] == [expected] * 2


def test_reduced_images_of_another_size_are_refused(large, tmp_path):
    # At half size both would have 302 columns.
    for name in ("fg.jpg", "bg.jpg"):
        (tmp_path / name).write_bytes((large / name).read_bytes())
    write_image(tmp_path / "alpha.png", disc(403, 604, 120))
    dataset = sample_set(tmp_path, NATURAL, "reduced")
    dataset.training = False
    with pytest.raises(DataError, match="603x403 pixels, but its alpha"):
        dataset[0]


def test_reduced_in_test_with_a_given_trimap(tmp_path):
    write_aim(tmp_path)
    samples = [
        replace(s, is_trans=0)
        for s in MattingDataset("AIM-500", root=tmp_path, training=False).samples
    ]
    full, reduced = (
        MattingDataset(samples=samples, root=tmp_path, size=16, training=False,
                       settings={**SETTINGS, "decode": decode})[0]
        for decode in ("full", "reduced")
    )  # fmt: skip
    assert torch.equal(full["trimap"], reduced["trimap"])
    assert torch.equal(full["hw"], reduced["hw"])
    assert not torch.equal(full["image"], reduced["image"])


# ----------------------------------------------------------------------- cache


@pytest.mark.parametrize("decode", ["full", "reduced"])
@pytest.mark.parametrize("cache_mb", [100, 0.02])
def test_the_cache_changes_no_sample(tmp_path, decode, cache_mb):
    write_composition(tmp_path)
    options = {"root": tmp_path, "size": 16}
    settings = {**SETTINGS, "decode": decode, "keep_aspect": True, "hue": 0.3, "flip_prob": 0.5}
    plain = MattingDataset("Composition-1K", settings=settings, **options)
    cached = MattingDataset(
        "Composition-1K", settings={**settings, "cache_mb": cache_mb}, **options
    )
    for epoch in range(2):
        for index in range(0, 9, 2):
            assert not differing(plain[epoch, index], cached[epoch, index])


def test_cached_files_are_not_read_again(tmp_path):
    write_composition(tmp_path, ("x",))
    dataset = MattingDataset(
        "Composition-1K", root=tmp_path, size=16, settings={**SETTINGS, "cache_mb": 1}
    )
    before = [dataset[1, i] for i in range(3)]
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            path.unlink()
    assert not any(differing(dataset[1, i], before[i]) for i in range(3))


def test_the_least_recently_used_is_dropped_first(tmp_path):
    write_backgrounds(tmp_path, 4, "b")  # 30 x 50 pixels: 4500 bytes each
    paths = sorted((tmp_path / "b").iterdir())
    reader = SourceReader(cache_mb=0.01)
    first, second = (reader.image(path, (1, 1)) for path in paths[:2])
    assert reader.image(paths[0], (1, 1)) is first
    reader.image(paths[2], (1, 1))  # the cache holds two
    assert reader.image(paths[0], (1, 1)) is first
    assert reader.image(paths[1], (1, 1)) is not second


def test_an_image_larger_than_the_cache_drops_nothing(tmp_path):
    write_backgrounds(tmp_path, 1, "b")
    write_image(tmp_path / "large.png", random_image(0, 100, 100))
    reader = SourceReader(cache_mb=0.01)
    small = reader.image(tmp_path / "b/b00.jpg", (1, 1))
    large = reader.image(tmp_path / "large.png", (1, 1))
    assert reader.image(tmp_path / "b/b00.jpg", (1, 1)) is small
    assert reader.image(tmp_path / "large.png", (1, 1)) is not large


def test_one_file_in_several_roles(tmp_path):
    write_image(tmp_path / "a.png", random_image(0, 80, 80))
    reader = SourceReader(reduced=True, cache_mb=1)
    assert reader.image(tmp_path / "a.png", (40, 40)).pixels.shape == (40, 40, 3)
    assert reader.image(tmp_path / "a.png", (41, 40)).pixels.shape == (80, 80, 3)
    assert reader.matte(tmp_path / "a.png", (40, 40)).pixels.shape == (40, 40)
    assert reader.matte(tmp_path / "a.png", (10, 10)) == (
        pytest.approx(reader.matte(tmp_path / "a.png", (10, 10)).pixels),
        (80, 80),
    )
    assert reader.trimap(tmp_path / "a.png").pixels.shape == (80, 80)


def test_cached_arrays_are_read_only(tmp_path):
    write_backgrounds(tmp_path, 1, "b")
    source = SourceReader(cache_mb=1).image(tmp_path / "b/b00.jpg", (1, 1))
    with pytest.raises(ValueError, match="read-only"):
        source.pixels[0] = 0
