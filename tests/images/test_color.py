"""Color management: images are converted to sRGB by their profile, and written in sRGB."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from SDMatte.images.arrays import read_pixels
from SDMatte.images.decode import read_metadata
from SDMatte.images.io import (
    read_alpha,
    read_image,
    read_matte,
    read_reduced,
    read_trimap,
)

COLORS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def assemble(space, tags):
    """Return an ICC profile of version 2 with the given tags."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        **tags,
    }
    table, body = b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    connection = b"Lab " if space == b"CMYK" else b"XYZ "
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    size = struct.pack(">I", 132 + len(table) + len(body))
    head = size + b"lcms" + b"\2\x10\0\0" + kind + space + connection
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += xyz(0.9642, 1.0, 0.8249)[8:] + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def xyz(*values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def gamma(value):
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def rgb_profile(red, green, blue, exponent):
    return assemble(b"RGB ", {
        b"rXYZ": xyz(*red), b"gXYZ": xyz(*green), b"bXYZ": xyz(*blue),
        b"rTRC": gamma(exponent), b"gTRC": gamma(exponent), b"bTRC": gamma(exponent),
    })  # fmt: skip


# The primaries of the standards, adapted to D50.
ADOBE_RGB = rgb_profile((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609),
                        (0.1492, 0.0632, 0.7446), 2.2)  # fmt: skip
DISPLAY_P3 = rgb_profile((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419),
                         (0.1571, 0.0666, 0.7841), 2.2)  # fmt: skip
LINEAR_GRAY = assemble(b"GRAY", {b"kTRC": gamma(1.0)})


def cmyk_profile():
    """Return the profile of a printer: cyan is (0, 150, 218), not (0, 255, 255)."""
    inks = {(1, 0, 0, 0): (0, 150, 218), (0, 1, 0, 0): (230, 0, 126), (0, 0, 1, 0): (255, 237, 0)}
    lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    corners = b""
    for index in np.ndindex(2, 2, 2, 2):
        rgb = np.prod([np.array(inks.get(tuple(np.eye(4)[i]), (0, 0, 0))) / 255
                       for i in range(4) if index[i]] or [np.ones(3)], axis=0)  # fmt: skip
        color = tuple(np.round(255 * rgb).astype(int).tolist())
        light, a, b = lab.apply(Image.new("RGB", (1, 1), color)).tobytes()
        # a and b are signed in Pillow, and start at -128 in the table.
        corners += bytes((light, (a + 128) % 256, (b + 128) % 256))
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + identity * 4 + corners
    return assemble(b"CMYK", {b"A2B0": table + identity * 3})


def srgb():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def assert_color(image, color, tolerance=3):
    assert np.abs(image.astype(int) - color).max() <= tolerance, image[0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, suffix):
    flat = Image.new("CMYK", (64, 64), (255, 0, 0, 0))
    options = {"quality": 100} if suffix == "jpg" else {}
    flat.save(tmp_path / f"a.{suffix}", icc_profile=cmyk_profile(), **options)
    assert_color(read_image(tmp_path / f"a.{suffix}"), (0, 150, 218))
    assert_color(read_reduced(tmp_path / f"a.{suffix}", (8, 8))[0], (0, 150, 218))
    flat.save(tmp_path / f"b.{suffix}", **options)  # without a profile
    assert_color(read_image(tmp_path / f"b.{suffix}"), (0, 255, 255))


def test_rgb(tmp_path):
    path = tmp_path / "a.png"
    for profile, color in ((ADOBE_RGB, (128, 64, 32)), (DISPLAY_P3, (200, 100, 50))):
        flat = Image.new("RGB", (4, 4), color)
        flat.save(path, icc_profile=profile)
        expected = ImageCms.profileToProfile(
            flat, io.BytesIO(profile), ImageCms.createProfile("sRGB")
        ).getpixel((0, 0))
        assert np.abs(np.array(expected) - color).max() > 8  # the profile has an effect
        assert_color(read_image(path), expected, 0)
        with Image.open(path) as opened:
            assert_color(read_pixels(opened)[0], expected, 0)
    # Adobe RGB (128, 64, 32), by the formulas of the standards
    Image.new("RGB", (4, 4), (128, 64, 32)).save(path, icc_profile=ADOBE_RGB)
    assert_color(read_image(path), (146, 62, 24), 2)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
def test_every_format(tmp_path, suffix):
    options = {"quality": 100} if suffix in ("jpg", "avif") else {}
    options = {"lossless": True} if suffix == "webp" else options
    flat = Image.new("RGB", (16, 16), (128, 64, 32))
    flat.save(tmp_path / f"a.{suffix}", icc_profile=ADOBE_RGB, **options)
    assert_color(read_image(tmp_path / f"a.{suffix}"), (146, 62, 24), 4)


def test_gray_and_16_bits(tmp_path):
    dark = np.full((4, 4), 55, np.uint8)  # linear; 129 in sRGB
    Image.fromarray(dark).save(tmp_path / "8.png", icc_profile=LINEAR_GRAY)
    Image.fromarray(dark.astype(np.uint16) * 257).save(tmp_path / "16.png", icc_profile=LINEAR_GRAY)
    Image.fromarray(dark).save(tmp_path / "g.jpg", icc_profile=LINEAR_GRAY, quality=100)
    for name in ("8.png", "16.png", "g.jpg"):
        assert_color(read_image(tmp_path / name), 129, 1)
    gray_of_rgb = tmp_path / "rgb.jpg"  # gray levels in an RGB space
    Image.new("L", (4, 4), 20).save(gray_of_rgb, icc_profile=rgb_profile(
        (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141), 1.0
    ), quality=100)  # fmt: skip
    assert_color(read_image(gray_of_rgb), 79, 1)


def test_16_bit_and_float_tiff(tmp_path):
    import tifffile

    linear = rgb_profile((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971),
                         (0.1431, 0.0606, 0.7141), 1.0)  # fmt: skip
    tag = (34675, 7, len(linear), linear, True)
    for dtype, value in (("f4", 55 / 255), ("u2", 55 * 257)):
        values = np.full((4, 4, 3), value, dtype)
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=[tag])
        assert_color(read_image(tmp_path / "a.tif"), 129, 1)


def test_alpha_is_not_converted(tmp_path):
    rgba = np.dstack([np.full((4, 4, 3), (128, 64, 32), np.uint8), np.full((4, 4), 77, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=ADOBE_RGB)
    assert_color(read_image(tmp_path / "a.png"), (146, 62, 24), 2)
    assert (read_matte(tmp_path / "a.png") == 77).all()
    palette = Image.fromarray(rgba).quantize(4)
    palette.save(tmp_path / "p.png", icc_profile=ADOBE_RGB)
    assert_color(read_image(tmp_path / "p.png"), (146, 62, 24), 4)
    gray_alpha = Image.merge("LA", [Image.new("L", (4, 4), 55), Image.new("L", (4, 4), 9)])
    gray_alpha.save(tmp_path / "la.png", icc_profile=LINEAR_GRAY)
    assert_color(read_image(tmp_path / "la.png"), 129, 1)


def test_mattes_and_trimaps_are_not_converted(tmp_path):
    values = np.array([[0, 55, 128, 255]], np.uint8)
    for name, array in (("8.png", values), ("16.png", values.astype(np.uint16) * 257)):
        Image.fromarray(array).save(tmp_path / name, icc_profile=LINEAR_GRAY)
        np.testing.assert_allclose(read_alpha(tmp_path / name), values / 255, atol=1e-6)
        np.testing.assert_array_equal(read_trimap(tmp_path / name), values)
    rgb = np.repeat(values[..., None], 3, axis=2)
    Image.fromarray(rgb).save(tmp_path / "c.png", icc_profile=ADOBE_RGB)
    np.testing.assert_array_equal(read_trimap(tmp_path / "c.png"), values)


def test_srgb_and_untagged_files_are_not_converted(tmp_path):
    path = tmp_path / "a.png"
    almost = rgb_profile((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971),
                         (0.1431, 0.0606, 0.7141), 2.2)  # fmt: skip
    for profile in (None, srgb()):
        Image.fromarray(COLORS).save(path, icc_profile=profile)
        np.testing.assert_array_equal(read_image(path), COLORS)
    Image.fromarray(COLORS).save(path, icc_profile=almost)  # same primaries, another curve
    assert (read_image(path) != COLORS).any()


@pytest.mark.parametrize(
    "profile", [b"junk", bytes(128), srgb()[:200], cmyk_profile(), LINEAR_GRAY],
    ids=["short", "zeros", "cut", "cmyk", "gray"],
)  # fmt: skip
def test_invalid_profiles_are_ignored_with_a_warning(tmp_path, profile, caplog):
    path = tmp_path / "a.png"
    Image.fromarray(COLORS).save(path, icc_profile=profile)
    np.testing.assert_array_equal(read_image(path), COLORS)
    (record,) = caplog.records
    assert f"{path}: its color profile is damaged or does not fit" in record.getMessage()


def test_kept_profile_is_srgb(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(COLORS).save(path)
    assert "icc_profile" not in read_metadata(path)
    Image.fromarray(COLORS).save(path, icc_profile=srgb())
    with Image.open(path) as image:
        assert read_metadata(path)["icc_profile"] == image.info["icc_profile"]
    Image.fromarray(COLORS).save(path, icc_profile=ADOBE_RGB)
    profile = read_metadata(path)["icc_profile"]
    assert profile == read_metadata(path)["icc_profile"]
    flat = Image.new("RGB", (4, 4), (128, 64, 32))
    same = ImageCms.profileToProfile(flat, io.BytesIO(profile), ImageCms.createProfile("sRGB"))
    assert_color(np.asarray(same), (128, 64, 32), 1)


def test_16_bit_png(tmp_path):
    deep = np.full((4, 4, 3), (32, 64, 128), np.uint16) * 257  # BGR
    encoded = cv2.imencode(".png", deep)[1].tobytes()
    plain = io.BytesIO()
    Image.new("RGB", (4, 4)).save(plain, "PNG", icc_profile=ADOBE_RGB)
    start = plain.getvalue().index(b"iCCP") - 4
    length = int.from_bytes(plain.getvalue()[start : start + 4], "big")
    chunk = plain.getvalue()[start : start + 12 + length]
    (tmp_path / "a.png").write_bytes(encoded[:33] + chunk + encoded[33:])
    assert_color(read_image(tmp_path / "a.png"), (146, 62, 24), 2)
