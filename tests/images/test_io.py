"""Reading and writing image files of every mode, valid and damaged."""

import os
import struct
import zlib
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
from PIL import Image

from SDMatte.errors import DataError, OutputError
from SDMatte.images.decode import read_hw, reduction
from SDMatte.images.io import (
    read_alpha,
    read_image,
    read_mask,
    read_matte,
    read_reduced,
    read_trimap,
    reduce_matte,
    trimap_levels,
    write_image,
)

RAMP = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)  # [4, 6]
COLORS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "bmp"])
def test_image_formats(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"ä b.{suffix}", COLORS, **options)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, COLORS)


def test_image_keeps_colors_under_alpha(tmp_path):
    rgba = np.dstack([COLORS, np.zeros((4, 6), np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgba)), COLORS)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1"])
def test_image_from_gray_and_palette(tmp_path, mode):
    two = np.where(RAMP > 100, 255, 0).astype(np.uint8)
    image = read_image(save(tmp_path / "a.png", two, mode))
    np.testing.assert_array_equal(image, np.repeat(two[..., None], 3, axis=2))


def test_image_from_16_bit_gray(tmp_path):
    image = read_image(save(tmp_path / "a.png", RAMP.astype(np.uint16) * 257))
    np.testing.assert_array_equal(image, np.repeat(RAMP[..., None], 3, axis=2))


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    for name, reader, array in (("i", read_image, COLORS), ("a", read_alpha, RAMP)):
        path = save(tmp_path / f"{name}.png", array, exif=exif)
        rotated = np.rot90(array, -1)
        assert reader(path).shape[:2] == (6, 4)
        scale = 255 if reader is read_alpha else 1
        np.testing.assert_allclose(reader(path) * scale, rotated, atol=1e-4)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA", "RGBA"])
def test_alpha_8_bit(tmp_path, mode):
    alpha = read_alpha(save(tmp_path / "a.png", RAMP, mode))
    assert alpha.dtype == np.float32
    np.testing.assert_array_equal(alpha, RAMP.astype(np.float32) / 255)


def test_alpha_cmyk(tmp_path):
    gray = np.full((8, 8), 120, np.uint8)
    alpha = read_alpha(save(tmp_path / "a.tif", np.stack([gray] * 3, -1), "CMYK"))
    np.testing.assert_allclose(alpha, 120 / 255, atol=1e-6)


def test_alpha_16_bit(tmp_path):
    values = np.array([[0, 1, 300], [65535, 32768, 5]], np.uint16)
    for name in ("a.png", "a.tif"):
        alpha = read_alpha(save(tmp_path / name, values))
        np.testing.assert_allclose(alpha, values / 65535, rtol=1e-6)


def test_alpha_1_bit_and_float(tmp_path):
    bits = np.where(RAMP > 100, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(read_alpha(save(tmp_path / "b.png", bits, "1")), bits / 255)
    unit = (RAMP / 255).astype(np.float32)
    np.testing.assert_array_equal(read_alpha(save(tmp_path / "f.tif", unit)), unit)
    for values in (RAMP * np.float32(1 / 229), RAMP + np.float32(0.5)):  # no known range
        with pytest.raises(DataError, match=r"g\.tif.*0 to 1"):
            read_alpha(save(tmp_path / "g.tif", values))


def test_alpha_of_a_cutout_is_its_alpha_channel(tmp_path):
    path = save(tmp_path / "a.png", np.dstack([COLORS, RAMP]))
    np.testing.assert_array_equal(read_alpha(path), RAMP.astype(np.float32) / 255)
    gray = save(tmp_path / "la.png", np.dstack([COLORS[..., 0], RAMP]))
    np.testing.assert_array_equal(read_alpha(gray), RAMP.astype(np.float32) / 255)


def test_trimap_keeps_its_values(tmp_path):
    trimap = np.array([[0, 128, 255]], np.uint8)
    for mode in ("L", "RGB", "P"):
        np.testing.assert_array_equal(read_trimap(save(tmp_path / "t.png", trimap, mode)), trimap)


def test_matte_keeps_8_bits(tmp_path):
    matte = read_matte(save(tmp_path / "a.png", RAMP))
    assert matte.dtype == np.uint8
    np.testing.assert_array_equal(matte, RAMP)
    wide = save(tmp_path / "w.png", np.array([[0, 300, 65535]], np.uint16))
    np.testing.assert_array_equal(read_matte(wide), read_alpha(wide))


def test_palettes_with_transparency(tmp_path):
    palette = Image.fromarray(np.tile(np.uint8([0, 1, 2]), (4, 2)), "P")
    palette.putpalette([10, 20, 30, 200, 100, 50, 5, 5, 5])
    palette.save(tmp_path / "p.png", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(read_matte(tmp_path / "p.png")[0, :3], [0, 128, 255])
    np.testing.assert_array_equal(read_image(tmp_path / "p.png")[0, 1], [200, 100, 50])


BINARY = (RAMP > 100).astype(np.uint8)  # 0 and 1


def palette_image(indices, colors):
    image = Image.fromarray(np.asarray(indices, np.uint8), "P")
    image.putpalette(np.ravel(colors).tolist())
    return image


VOC = [[0, 0, 0], [128, 0, 0], [0, 128, 0], *[[9, 9, 9]] * 252, [224, 224, 192]]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(BINARY),
        Image.fromarray(BINARY.astype(np.uint16)),
        Image.fromarray(BINARY.astype(np.int32)),
        Image.fromarray(BINARY.astype(np.float32)),
        Image.fromarray(BINARY.astype(np.float32) * 255),
        Image.fromarray(BINARY.astype(np.uint16) * 255),
        Image.fromarray(BINARY.astype(bool)),
        Image.fromarray(np.repeat(BINARY[..., None], 3, axis=2)),
        palette_image(BINARY, VOC),
        palette_image(BINARY, [[0, 0, 0], [1, 1, 1]]),
        palette_image(BINARY * 2, VOC),
        palette_image(1 - BINARY, [[200, 0, 0], [0, 0, 0]]),  # as ordered by optimizers
    ],
    ids=lambda image: image.mode,
)
def test_masks_of_0_and_1_or_indices_are_recognized(tmp_path, image):
    path = tmp_path / "m.tif"
    image.save(path)
    np.testing.assert_array_equal(read_alpha(path), BINARY)
    mask = read_mask(path)
    np.testing.assert_array_equal(mask > 0, BINARY)
    assert len(np.unique(mask)) == 2


def test_warning_about_ranges_once_per_folder(tmp_path, caplog):
    for name in ("a.png", "b.png"):
        read_alpha(save(tmp_path / name, BINARY))
    assert caplog.text.count("its largest value is 1, so it is read as 0 and 1") == 1


def test_dark_alphas_are_not_rescaled(tmp_path):
    for values in (np.zeros((2, 2), np.uint8), np.uint8([[0, 2]]), np.uint16([[0, 254]])):
        alpha = read_alpha(save(tmp_path / "a.png", values))
        np.testing.assert_allclose(alpha, values / np.iinfo(values.dtype).max, rtol=1e-6)


def test_palette_labels(tmp_path):
    path = tmp_path / "voc.png"
    palette_image([[0, 1, 2, 255]], VOC).save(path)
    assert read_mask(path).tolist() == [[0, 1, 2, 0]]  # 255 is void
    with pytest.raises(DataError, match=r"several objects by their index \(1, 2\)"):
        read_alpha(path)


def test_color_masks_are_read_by_their_brightest_channel(tmp_path):
    red = np.uint8([[[0, 0, 0], [250, 50, 80], [0, 0, 255]]])
    assert read_mask(save(tmp_path / "m.png", red)).tolist() == [[0, 250, 255]]
    rgba = np.dstack([red, np.uint8([[255, 0, 9]])])
    assert read_mask(save(tmp_path / "c.png", rgba)).tolist() == [[255, 0, 9]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_trimaps_of_0_1_2(tmp_path, dtype):
    expected = [[0, 128, 255]]
    path = tmp_path / "t.tif"
    for values in ([0, 1, 2], [0, 128, 255]):
        assert read_trimap(save(path, np.array([values], dtype))).tolist() == expected
    with (
        pytest.raises(DataError, match="only the values 0 and 1")
        if dtype != np.float32
        else nullcontext()
    ):
        assert read_trimap(save(path, np.array([[0, 1]], dtype))).tolist() == [[0, 255]]
    palette_image([[0, 1, 2]], VOC).save(tmp_path / "p.png")
    assert read_trimap(tmp_path / "p.png").tolist() == expected
    pet = save(tmp_path / "pet.png", np.uint8([[1, 2, 3]]))
    with pytest.raises(DataError, match="The trimap has the value 1. Allowed are 0"):
        trimap_levels(read_trimap(pet))


def test_read_hw_of_rotated_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.tif"):
        assert read_hw(save(tmp_path / name, COLORS)) == (4, 6)
        assert read_hw(save(tmp_path / name, COLORS, exif=exif)) == (6, 4)


def test_100_megapixels(tmp_path):
    large = Image.new("L", (10_000, 10_000), 7)
    large.putpixel((9_999, 9_999), 200)
    large.save(tmp_path / "l.png", compress_level=1)
    matte = read_matte(tmp_path / "l.png")
    assert matte.shape == (10_000, 10_000) and matte[0, 0] == 7 and matte[-1, -1] == 200


# --------------------------------------------------------------------- reduced


@pytest.mark.parametrize(
    ("hw", "at_least", "factor"),
    [
        ((2000, 3000), (512, 512), 2),
        ((2000, 3000), (500, 750), 4),
        ((2000, 3000), (501, 1), 2),
        ((1999, 3000), (500, 512), 4),  # 1999 rows make 500 squares, the last one incomplete
        ((2000, 3000), (1, 1), 8),
        ((2000, 3000), (2001, 1), 1),
        ((1, 1), (1, 1), 8),
    ],
)
def test_reduction(hw, at_least, factor):
    assert reduction(hw, at_least) == factor


def smooth(height, width):
    ys, xs = np.mgrid[:height, :width]
    waves = [np.sin(ys / 9), np.cos(xs / 7), np.sin((xs + ys) / 11)]
    return np.round(127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def averages(array, factor):
    """Return the means of squares; those at the edges may be incomplete."""
    height, width = (-(-n // factor) for n in array.shape[:2])
    return np.array([
        [array[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].mean(axis=(0, 1))
         for x in range(width)]
        for y in range(height)
    ])  # fmt: skip


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0.51), ("a.jpg", 5), ("g.jpg", 1)])
def test_reduced_images_are_averages(tmp_path, factor, name, tolerance):
    array = smooth(67, 101)
    array = array[..., 0] if name == "g.jpg" else array
    path = save(tmp_path / name, array, **({"quality": 100} if name == "a.jpg" else {}))
    at_least = (-(-67 // factor), -(-101 // factor))
    image, hw = read_reduced(path, at_least)
    assert hw == (67, 101) and image.shape == (*at_least, 3) and image.dtype == np.uint8
    error = abs(image - averages(read_image(path).astype(float), factor))
    assert error[:-1, :-1].max() <= tolerance
    assert error.max() < 15  # incomplete squares, which decoders pad


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_reduced_mattes_are_averages(factor):
    for matte, tolerance in ((smooth(67, 101)[..., 0], 0.7), (smooth(67, 101)[..., 0] / 255, 1e-6)):
        matte = matte.astype(np.float32) if tolerance < 0.1 else matte
        reduced = reduce_matte(matte, factor)
        assert reduced.dtype == matte.dtype
        np.testing.assert_allclose(reduced, averages(matte.astype(float), factor), atol=tolerance)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_reduced_and_rotated(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / name, smooth(64, 96), exif=exif)
    image, hw = read_reduced(path, (24, 10))  # 96 x 64 upright
    assert hw == (96, 64) and image.shape == (24, 16, 3)
    assert abs(image - averages(read_image(path).astype(float), 4)).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_and_rotated_images_are_aligned(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", smooth(67, 101), exif=exif, quality=100)
    upright = read_image(path).astype(float)
    at_least = tuple(-(-side // 8) for side in upright.shape[:2])
    image, _ = read_reduced(path, at_least)
    assert abs(image - averages(upright, 8))[:-1, :-1].max() <= 5


def test_reduced_cmyk_and_16_bit(tmp_path):
    flat = np.full((64, 64, 3), (200, 100, 50), np.uint8)
    image, _ = read_reduced(save(tmp_path / "c.jpg", flat, "CMYK", quality=100), (16, 16))
    assert image.shape == (16, 16, 3) and np.abs(image.astype(int) - flat[:16, :16]).max() <= 3
    wide = save(tmp_path / "w.png", np.full((64, 64), 100 * 257, np.uint16))
    image, hw = read_reduced(wide, (8, 8))
    assert hw == (64, 64) and image.shape == (8, 8, 3) and (image == 100).all()


# --------------------------------------------------------------- damaged files


def bomb(path, side):
    """Write a PNG of a few bytes that claims side x side pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def damaged_files(folder):
    good = folder / "good.png"
    save(good, np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    save(folder / "good.jpg", np.asarray(Image.open(good)))
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("this is not an image")
    (folder / "cut.png").write_bytes(good.read_bytes()[:5000])
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:1500])
    (folder / "head.png").write_bytes(good.read_bytes()[:20])
    damaged = bytearray(good.read_bytes())
    damaged[3000:3100] = bytes(100)
    (folder / "damaged.png").write_bytes(damaged)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")  # opening it would wait for a writer
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    Image.open(good).save(folder / "script.png", format="EPS")  # Pillow would start Ghostscript
    bomb(folder / "bomb.png", 60_000)
    bomb(folder / "large.png", 17_000)
    return {
        "missing.png": "does not exist",
        "empty.png": "empty",
        "text.png": "not an image",
        "cut.png": "truncated",
        "cut.jpg": "truncated",
        "head.png": "truncated",
        "damaged.png": "damaged",
        "folder.png": "not a file",
        "pipe.png": "not a file",
        "device.png": "not a file",
        "dangling.png": "does not exist",
        f"{'long' * 99}.png": "does not exist",
        "script.png": "not an image",
        "bomb.png": "60000x60000 pixels; the limit .*SDMATTE_MAX_PIXELS=3600000000",
        "large.png": "17000x17000 pixels; the limit is 268 megapixels",
    }


@pytest.mark.parametrize(
    "reader", [read_image, read_alpha, read_trimap, partial(read_reduced, at_least=(8, 8))]
)
def test_damaged_files_raise_one_sentence(tmp_path, reader, recwarn):
    for name, reason in damaged_files(tmp_path).items():
        with pytest.raises(DataError, match=reason) as caught:
            reader(tmp_path / name)
        text = str(caught.value)
        assert str(tmp_path / name) in text and "\n" not in text and text.endswith(".")
    assert not list(recwarn)


# --------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".bmp", ".PNG"])
def test_write_and_read(tmp_path, suffix):
    path = write_image(tmp_path / "new" / f"a{suffix}", COLORS)
    np.testing.assert_array_equal(read_image(path), COLORS)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file left


def test_write_jpeg_float_bool_16_bit_and_rgba(tmp_path):
    assert read_image(write_image(tmp_path / "a.jpg", COLORS)).shape == (4, 6, 3)
    values = np.array([[0, 0.5, 1.0, 0.0019, 0.0020]], np.float32)  # 127.5 rounds to even
    write_image(tmp_path / "f.png", values)
    np.testing.assert_array_equal(read_trimap(tmp_path / "f.png"), [[0, 128, 255, 0, 1]])
    write_image(tmp_path / "b.png", RAMP > 100)
    np.testing.assert_array_equal(read_alpha(tmp_path / "b.png"), RAMP > 100)
    wide = np.array([[0, 1, 65535]], np.uint16)
    write_image(tmp_path / "w.png", wide)
    np.testing.assert_allclose(read_alpha(tmp_path / "w.png"), wide / 65535, rtol=1e-6)
    rgba = np.dstack([COLORS, RAMP])
    write_image(tmp_path / "r.png", rgba)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "r.png")), rgba)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("a.gif", RAMP, "suffix"),
        ("a", RAMP, "suffix"),
        ("a.jpg", np.zeros((2, 2, 4), np.uint8), "alpha channel"),
        ("a.png", np.zeros((2, 2, 2), np.uint8), "shape"),
        ("a.png", np.zeros(4, np.uint8), "shape"),
        ("a.png", np.full((2, 2), 1.5), r"\[0, 1\]"),
        ("a.png", np.full((2, 2), np.nan), r"\[0, 1\]"),
        ("a.png", np.zeros((2, 2), np.int64), "int64"),
        ("a.jpg", np.zeros((2, 2), np.uint16), "uint16"),
    ],
)
def test_invalid_arrays_are_refused(tmp_path, name, array, message):
    with pytest.raises(DataError, match=message):
        write_image(tmp_path / name, array)
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_existing_files(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="Cannot write"):
        write_image(tmp_path / "file" / "a.png", RAMP)
    target = tmp_path / "a.png"
    target.mkdir()
    with pytest.raises(OutputError, match="Cannot write"):
        write_image(target, RAMP)
    assert sorted(os.listdir(tmp_path)) == ["a.png", "file"]
