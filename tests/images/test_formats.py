"""Supported formats, and messages for the others."""

import os

import cv2
import numpy as np
import pillow_heif
import pytest
import tifffile  # comes with scikit-image
from PIL import Image, features

from SDMatte.errors import DataError
from SDMatte.images.formats import IMAGE_EXTENSIONS
from SDMatte.images.io import read_alpha, read_image, read_matte, read_reduced
from SDMatte.images.listing import list_names

COLORS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
IMAGE = Image.fromarray(COLORS)
AVIF = {"quality": 100, "subsampling": "4:4:4"}
HEIC = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}  # lossless
WEBP = {"lossless": True, "exact": True}


def assert_close(image, expected, tolerance):
    assert image.shape == expected.shape and image.dtype == expected.dtype
    assert np.abs(image.astype(int) - expected).max() <= tolerance


def test_avif_heic_and_gif(tmp_path):
    assert features.check("avif")
    IMAGE.save(tmp_path / "a.avif", **AVIF)
    pillow_heif.from_pillow(IMAGE).save(tmp_path / "a.heic", **HEIC)
    gif = IMAGE.quantize(64)
    gif.save(tmp_path / "a.gif")
    assert list_names(tmp_path) == ["a.avif", "a.gif", "a.heic"]
    assert_close(read_image(tmp_path / "a.avif"), COLORS, 3)
    assert_close(read_image(tmp_path / "a.heic"), COLORS, 0)
    assert_close(read_image(tmp_path / "a.gif"), np.asarray(gif.convert("RGB")), 0)
    reduced, hw = read_reduced(tmp_path / "a.heic", (20, 30))
    assert reduced.shape == (20, 30, 3) and hw == (40, 60)
    assert "HEIF" not in Image.OPEN  # Pillow is not changed


def test_heic_and_avif_are_rotated_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    heif = pillow_heif.from_pillow(IMAGE)
    heif[0].info["exif"] = exif.tobytes()
    heif.save(tmp_path / "a.heic", **HEIC)
    IMAGE.save(tmp_path / "a.avif", exif=exif.tobytes(), **AVIF)
    assert_close(read_image(tmp_path / "a.heic"), np.rot90(COLORS, -1), 0)
    assert_close(read_image(tmp_path / "a.avif"), np.rot90(COLORS, -1), 3)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif", "tif", "heic"])
def test_first_frame_of_an_animation_with_a_warning(tmp_path, suffix, caplog):
    path = tmp_path / f"a.{suffix}"
    frames = [Image.fromarray(np.full((40, 60, 3), v, np.uint8)) for v in (0, 100, 200)]
    if suffix == "heic":
        heif = pillow_heif.HeifFile()
        for frame in frames:
            heif.add_from_pillow(frame)
        heif.save(path, **HEIC)
    else:
        frames[0].save(path, save_all=True, append_images=frames[1:])
    for _ in range(2):  # training reads it every epoch
        assert read_image(path).max() <= 1
    (record,) = caplog.records
    assert str(path) in record.getMessage() and "several frames or pages" in record.getMessage()


def test_thumbnails_and_views_are_not_pages(tmp_path, caplog):
    other = Image.new("RGB", (8, 8))
    IMAGE.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[other])
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(COLORS, photometric="rgb")
        tiff.write(COLORS[::2, ::2].copy(), photometric="rgb", subfiletype=1)
    with Image.open(tmp_path / "a.tif") as written:
        assert written.n_frames == 2
    assert read_image(tmp_path / "a.jpg").shape == COLORS.shape
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), COLORS)
    assert not caplog.records


def test_files_that_are_not_images_are_named(tmp_path):
    for name, data, kind, advice in (
        ("a.png", b"II*\0\x10\0\0\0CR\2\0", "a camera raw file", "develop"),  # Canon
        ("a.NEF", b"MM\0*\0\0\0\x08\0\0", "a camera raw file", "develop"),
        ("lfs.png", b"version https://git-lfs.github.com/spec/v1\noid", "LFS pointer", "fetch"),
        ("page.jpg", b"\n<!DOCTYPE html><html>", "a web page", "download"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{kind}.*{advice}") as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_raw_files_are_not_read_as_their_preview(tmp_path):
    IMAGE.save(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.dng")
    with pytest.raises(DataError, match="a camera raw file, which is not supported"):
        read_image(tmp_path / "a.dng")
    IMAGE.save(tmp_path / "b.dng", format="PNG")  # not every file with that suffix is one
    np.testing.assert_array_equal(read_image(tmp_path / "b.dng"), COLORS)


def test_not_an_image_or_damaged(tmp_path):
    (tmp_path / "a.png").write_bytes(b"P3rhaps a poem\n")
    (tmp_path / "a.nef").write_bytes(b"a note")
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41")
    (tmp_path / "a.psd").write_bytes(b"8BPS\0\1")
    for name in ("a.png", "a.nef", "a.mp4", "a.psd"):
        with pytest.raises(DataError, match="it is not an image"):
            read_image(tmp_path / name)
    for suffix in ("avif", "heic", "gif", "webp"):
        path = tmp_path / f"b.{suffix}"
        pillow_heif.from_pillow(IMAGE).save(path) if suffix == "heic" else IMAGE.save(path)
        for size in (20, os.path.getsize(path) // 2):
            (tmp_path / f"c.{suffix}").write_bytes(path.read_bytes()[:size])
            with pytest.raises(DataError, match="damaged or truncated"):
                read_image(tmp_path / f"c.{suffix}")


def test_suffix_may_differ_from_the_format(tmp_path):
    IMAGE.save(tmp_path / "Ünï (1) #%.PNG", format="BMP")
    np.testing.assert_array_equal(read_image(tmp_path / "Ünï (1) #%.PNG"), COLORS)
    assert list_names(tmp_path) == ["Ünï (1) #%.PNG"]
    assert all(suffix == suffix.lower() for suffix in IMAGE_EXTENSIONS)


# --------------------------------------------------------- 16-bit and float TIFF


def write_tiff(path, array):
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)
    return path


def test_floating_point_and_wide_colors(tmp_path):
    unit = COLORS / 255
    for dtype, values in (
        ("float32", unit),
        ("float64", unit),
        ("uint16", COLORS.astype(np.uint16) * 257),
    ):
        path = write_tiff(tmp_path / f"{dtype}.tif", values.astype(dtype))
        np.testing.assert_array_equal(read_image(path), COLORS)
        reduced, hw = read_reduced(path, (20, 30))
        assert reduced.shape == (20, 30, 3) and hw == (40, 60)
    gray = write_tiff(tmp_path / "gray.tif", unit[..., 0])  # Pillow has no float64
    np.testing.assert_allclose(read_alpha(gray), unit[..., 0], atol=1e-6)
    rgba = cv2.cvtColor(np.dstack([unit, unit[..., 0]]).astype(np.float32), cv2.COLOR_RGBA2BGRA)
    assert cv2.imwrite(str(tmp_path / "rgba.tif"), rgba)
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.tif"), COLORS)
    np.testing.assert_array_equal(read_matte(tmp_path / "rgba.tif"), COLORS[..., 0])
    wide = cv2.cvtColor(COLORS.astype(np.uint16) * 257, cv2.COLOR_RGB2BGR)
    assert cv2.imwrite(str(tmp_path / "wide.png"), wide)
    np.testing.assert_array_equal(read_image(tmp_path / "wide.png"), COLORS)


def test_floating_point_colors_out_of_range(tmp_path, capfd):
    for name, value in (("high", 2.0), ("low", -0.5), ("nan", np.nan)):
        values = np.full((4, 4, 3), 0.5, np.float32)
        values[1, 1, 1] = value
        with pytest.raises(
            DataError, match=f"{name}.tif: its values range from .*must be in 0 to 1"
        ):
            read_image(write_tiff(tmp_path / f"{name}.tif", values))
    cut = write_tiff(tmp_path / "cut.tif", COLORS / 255).read_bytes()
    (tmp_path / "cut.tif").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(DataError, match="damaged or truncated"):
        read_image(tmp_path / "cut.tif")
    assert capfd.readouterr() == ("", "")  # no messages of OpenCV


def test_unsupported_tiffs_are_refused(tmp_path):
    wide = COLORS.astype(np.uint16) * 257
    planes = wide.transpose(2, 0, 1).copy()
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "h.tif", (COLORS / 255).astype("f2"), photometric="rgb")
    for name in ("p", "h"):
        with pytest.raises(DataError, match="3 channels of 16 bits.*convert it to PNG"):
            read_image(tmp_path / f"{name}.tif")
