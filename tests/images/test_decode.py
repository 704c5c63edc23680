"""Damaged metadata, limits, and the metadata that a cutout keeps."""

import struct
import threading
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational

from SDMatte.errors import ConfigError, DataError
from SDMatte.images.decode import max_pixels, read_metadata
from SDMatte.images.io import read_image, read_matte, read_reduced, write_image

COLORS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
IMAGE = Image.fromarray(COLORS)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXACT = {"webp": {"lossless": True, "exact": True}, "jpg": {"quality": 100, "subsampling": 0}}


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def png_chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def insert(path, chunk, at=33):
    data = path.read_bytes()
    path.write_bytes(data[:at] + chunk + data[at:])


LONG = zlib.compress(b"x" * 2_000_000)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"zTXt", b"workflow\0\0" + LONG),
        (b"iTXt", b"workflow\0\1\0\0\0" + LONG),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
        (b"zTXt", b"workflow\0\7" + LONG),  # an unknown compression
        (b"iCCP", b"name\0\0" + zlib.compress(SRGB + bytes(2_000_000))),
        (b"iCCP", b"name\0\0" + zlib.compress(bytes(1 << 25))),
        (b"iCCP", b"name\0\7junk"),
        (b"iCCP", b"name"),
        (b"pHYs", b"\1"),
        (b"gAMA", b""),
        (b"cHRM", b"\1\2\3"),
        (b"sRGB", b""),
        (b"acTL", b"\1"),
        (b"fcTL", bytes(4)),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_png_with_damaged_metadata(tmp_path, kind, data, after):
    path = tmp_path / "a.png"
    IMAGE.save(path, exif=rotated())
    insert(path, png_chunk(kind, data), at=-12 if after else 33)
    np.testing.assert_array_equal(read_image(path), np.rot90(COLORS, -1))  # intact EXIF is used
    assert read_matte(path).shape == (60, 40)


def test_png_with_many_texts_or_wrong_checksums(tmp_path):
    IMAGE.save(tmp_path / "a.png")
    text = png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 1_000_000))
    insert(tmp_path / "a.png", text * 70)  # more than Pillow allows
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLORS)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "a cat")
    IMAGE.save(tmp_path / "b.png", pnginfo=texts)
    damaged = (tmp_path / "b.png").read_bytes().replace(b"a cat", b"a hat")
    (tmp_path / "b.png").write_bytes(damaged)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), COLORS)


def test_large_profile_is_used(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), (10, 20, 30)).save(path)
    linear = bytearray(SRGB)
    start = linear.index(b"para")
    linear[start : start + 32] = b"curv" + bytes(4) + struct.pack(">I", 0) + bytes(20)  # identity
    insert(path, png_chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(linear) + bytes(2_000_000))))
    assert read_image(path)[0, 0, 0] > 50  # linear 10 is 56
    assert "icc_profile" in read_metadata(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage!garbage",
        b"junk",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + b"\xff" * 30,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\0\0\0\0",
    ],
    ids=range(6),
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif(tmp_path, suffix, exif):
    path = tmp_path / f"a.{suffix}"
    IMAGE.save(path, exif=exif, **EXACT.get(suffix, {}))
    assert np.abs(read_image(path).astype(int) - COLORS).max() <= (4 if suffix == "jpg" else 0)
    assert read_reduced(path, (8, 8))[1] == (40, 60)
    assert b"garbage" not in read_metadata(path).get("exif", b"")


@pytest.mark.parametrize("suffix", ["tif", "avif", "heic"])
def test_damaged_exif_of_other_formats(tmp_path, suffix, recwarn):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0110] = "camera"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    if suffix == "heic":
        heif = pillow_heif.from_pillow(IMAGE)
        heif[0].info["exif"] = exif.tobytes()
        heif.save(path)
    else:
        IMAGE.save(path, exif=exif.tobytes())
    expected = read_image(path)
    data = path.read_bytes()
    pointer = struct.pack("<HHI", 0x8769, 4, 1)
    if suffix == "tif":
        damaged = data.replace(pointer, struct.pack("<HHI", 0x8769, 0xFFFF, 1 << 31))
    else:
        damaged = data.replace(b"MM\0*", b"XXXX")
    assert damaged != data
    path.write_bytes(damaged)
    np.testing.assert_array_equal(read_image(path), expected)
    read_metadata(path)
    assert not list(recwarn)


def test_tiff_that_pillow_does_not_identify(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "camera"
    IMAGE.save(tmp_path / "a.tif", exif=exif.tobytes())
    data = (tmp_path / "a.tif").read_bytes()
    model = data.index(struct.pack("<HHI", 0x0110, 2, 7))
    damaged = data[: model + 8] + b"\xf0\xff\xff\xff" + data[model + 12 :]  # offset of the text
    (tmp_path / "a.tif").write_bytes(damaged)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), COLORS)


def segment(marker, body):
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE0, b"JFIF\0"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        (0xE2, b"MPF\0junk"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<<<"),
        (0xFE, b"\xff\xfe\0"),
    ],
)
def test_jpeg_with_damaged_metadata(tmp_path, marker, body):
    path = tmp_path / "a.jpg"
    IMAGE.save(path, exif=rotated(), **EXACT["jpg"])
    insert(path, segment(marker, body), at=2)
    assert np.abs(read_image(path).astype(int) - np.rot90(COLORS, -1)).max() <= 4


def test_damaged_pixels_are_an_error_despite_damaged_metadata(tmp_path):
    path = tmp_path / "a.png"
    IMAGE.save(path)
    insert(path, png_chunk(b"zTXt", b"workflow\0\0" + LONG))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1500])
    with pytest.raises(DataError, match="damaged or truncated"):
        read_image(path)
    damaged = bytearray(whole)
    damaged[-3000:-2900] = bytes(100)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged or truncated"):
        read_image(path)


# ---------------------------------------------------------------------- limits


def test_200_megapixels(tmp_path, recwarn):
    path = tmp_path / "a.jpg"
    Image.new("L", (16320, 12240), 90).save(path, quality=50)
    image, hw = read_reduced(path, (64, 64))
    assert hw == (12240, 16320) and image.shape == (1530, 2040, 3)
    assert np.abs(image.astype(int) - 90).max() <= 1
    assert not list(recwarn)


def test_large_tiff(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses twice as many
    IMAGE.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), COLORS)
    assert not list(recwarn)


def test_pixel_limit(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    IMAGE.save(path)
    monkeypatch.setenv("SDMATTE_MAX_PIXELS", "2000")
    with pytest.raises(DataError, match="60x40 pixels.*SDMATTE_MAX_PIXELS=2400") as caught:
        read_image(path)
    setting = str(caught.value).rstrip(".").rpartition("=")[2]
    monkeypatch.setenv("SDMATTE_MAX_PIXELS", setting)  # the value of the message
    assert read_image(path).shape == (40, 60, 3)
    monkeypatch.setenv("SDMATTE_MAX_PIXELS", "1000")  # less than half of the pixels
    with pytest.raises(DataError, match="SDMATTE_MAX_PIXELS=2400"):
        read_image(path)
    monkeypatch.setenv("SDMATTE_MAX_PIXELS", "4e8")
    assert max_pixels() == 400_000_000
    monkeypatch.delenv("SDMATTE_MAX_PIXELS")
    assert max_pixels() == 2**28
    for value in ("many", "0", "-3", "nan", "inf"):
        monkeypatch.setenv("SDMATTE_MAX_PIXELS", value)
        with pytest.raises(ConfigError, match=f"SDMATTE_MAX_PIXELS must be .*got '{value}'"):
            read_image(path)


def test_limit_of_pillow_is_restored(tmp_path):
    path = tmp_path / "a.png"
    IMAGE.save(path)
    (tmp_path / "bad.png").write_bytes(path.read_bytes()[:2000])
    limit = Image.MAX_IMAGE_PIXELS

    def read():
        for _ in range(20):
            read_image(path)
            with pytest.raises(DataError):
                read_image(tmp_path / "bad.png")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Image.MAX_IMAGE_PIXELS == limit


# --------------------------------------------------------------- kept metadata


def photograph(path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x013B] = "Maker", 6, "Somebody"
    exif.get_ifd(0x8769).update({0x9003: "2020:01:01 00:00:00", 0xA001: 0xFFFF, 0xA002: 60})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    IMAGE.save(path, exif=exif.tobytes(), dpi=(300, 150))
    return path


@pytest.mark.parametrize("source", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_exif_and_resolution_are_kept(tmp_path, source, suffix):
    metadata = read_metadata(photograph(tmp_path / f"in.{source}"))
    path = write_image(tmp_path / f"out.{suffix}", COLORS, metadata)
    with Image.open(path) as written:
        exif = written.getexif()
        dpi = written.info.get("dpi") or (exif.get(0x011A), exif.get(0x011B))
        if source not in ("webp", "avif"):  # these have none
            assert np.allclose([float(v) for v in dpi], (150, 300), atol=0.1)  # upright
        if suffix != "bmp":
            assert (exif[0x010F], exif[0x013B], 0x0112 in exif) == ("Maker", "Somebody", False)
            details = exif.get_ifd(0x8769)
            assert details == {0x9003: "2020:01:01 00:00:00", 0xA001: 1}  # sRGB
            assert exif.get_ifd(0x8825) == {1: "N", 2: (1.0, 2.0, 3.0)}
    if suffix != "jpg":
        np.testing.assert_array_equal(read_image(path), COLORS)


def test_metadata_of_16_bit_png(tmp_path):
    metadata = {**read_metadata(photograph(tmp_path / "in.jpg")), "icc_profile": SRGB}
    wide = np.random.default_rng(0).integers(0, 65536, (8, 12, 4), dtype=np.uint16)
    with Image.open(write_image(tmp_path / "a.png", wide, metadata)) as written:
        assert written.mode == "RGBA" and written.info["icc_profile"] == SRGB
        assert np.allclose(written.info["dpi"], (150, 300), atol=0.1)
        assert written.getexif()[0x010F] == "Maker"
        written.load()


def test_no_thumbnails_and_no_default_resolutions(tmp_path):
    main = struct.pack("<HHHI4sI", 1, 0x010F, 2, 4, b"Eve\0", 26)  # and the next offset
    entries = struct.pack("<HHII", 0x0201, 4, 1, 56) + struct.pack("<HHII", 0x0202, 4, 1, 500)
    thumbnail = struct.pack("<H", 2) + entries + bytes(4) + b"\xff\xd8" + bytes(498)
    IMAGE.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + main + thumbnail)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[0x0202] == 500
    kept = read_metadata(tmp_path / "a.jpg")
    assert b"Eve" in kept["exif"] and len(kept["exif"]) < 100 and "dpi" not in kept
    IMAGE.save(tmp_path / "b.jpg")
    IMAGE.save(tmp_path / "b.tif")
    assert read_metadata(tmp_path / "b.jpg") == read_metadata(tmp_path / "b.tif") == {}


def test_exif_too_long_for_jpeg_is_dropped(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    IMAGE.save(tmp_path / "in.png", exif=exif)
    metadata = read_metadata(tmp_path / "in.png")
    with Image.open(write_image(tmp_path / "out.jpg", COLORS, metadata)) as written:
        assert not written.getexif()
    with Image.open(write_image(tmp_path / "out.png", COLORS, metadata)) as written:
        assert len(written.getexif()[0x010E]) == 70_000


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_odd_exif_values_are_written(tmp_path, suffix):
    exif = Image.Exif()
    exif.update({0x0131: 7, 0x013B: b"\xff\xfe", 0x9C9B: b"T\0i\0", 0x4746: 5})
    exif.get_ifd(0x8769).update({0x829A: IFDRational(0, 0), 0x9286: b"UNICODE\0\xff\xff"})
    exif.get_ifd(0x8825)[2] = (IFDRational(1, 0),)
    IMAGE.save(tmp_path / "in.png", exif=exif.tobytes())
    metadata = read_metadata(tmp_path / "in.png")
    with Image.open(write_image(tmp_path / f"out.{suffix}", COLORS, metadata)) as written:
        assert 0x4746 in written.getexif()


def test_tiff_without_exif_is_compressed(tmp_path):
    IMAGE.save(tmp_path / "in.png", dpi=(300, 300))
    metadata = read_metadata(tmp_path / "in.png")
    with Image.open(write_image(tmp_path / "a.tif", COLORS, metadata)) as written:
        assert written.info["compression"] == "tiff_adobe_deflate"
        assert abs(float(written.info["dpi"][0]) - 300) < 0.1
