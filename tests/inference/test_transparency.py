"""Transparent images: mattes never exceed their alpha, and hidden colors are never used."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from SDMatte import MattePredictor
from SDMatte.images.arrays import NEUTRAL, as_background, read_background, read_pixels
from SDMatte.images.io import read_image_and_alpha
from SDMatte.inference.batch import Batch
from SDMatte.inference.result import OutputSettings
from SDMatte.prompts.requests import PromptRequest

HIDDEN = (255, 0, 255)
BOX = (9, 7, 72, 63)


@pytest.fixture(scope="module")
def rgba(rgb):
    """Return uint8 [70, 90, 4]: magenta around an opaque rectangle, two edges of which are soft."""
    alpha = np.zeros((70, 90), np.uint8)
    alpha[20:50, 30:70] = 255
    alpha[15:20, 30:70], alpha[20:50, 70:75] = 120, 3
    colors = np.where(alpha[..., None] > 0, rgb // 2, HIDDEN).astype(np.uint8)
    return np.dstack([colors, alpha])


def predict_ones(monkeypatch):
    """Make the model predict 1 everywhere."""
    infer = MattePredictor._infer_batch
    monkeypatch.setattr(
        MattePredictor, "_infer_batch", lambda self, tasks: np.ones_like(infer(self, tasks))
    )


def test_results_do_not_exceed_alpha_or_show_hidden_colors(predictor, rgba, monkeypatch):
    predict_ones(monkeypatch)
    hidden, allowed = rgba[..., 3] == 0, rgba[..., 3]
    encoded = predictor.encode(rgba)
    boxes = predictor.predict(box=[BOX, (0, 0, 90, 70)], image=encoded)
    batch = predictor.predict_batch([rgba], [{"box": BOX}])
    tiles = predictor.predict(box=BOX, refine="tiles", image=encoded)
    for result in (*boxes, *batch, tiles):
        assert (result.alpha <= allowed / 255 + 1e-7).all() and result.alpha.max() == 1
        assert (result.image[hidden] == NEUTRAL).all()
        # Visible pixels belong to the object and keep their colors.
        np.testing.assert_array_equal(result.foreground[~hidden], rgba[~hidden][:, :3])
        for bits, full in ((8, 255), (16, 65535)):
            cutout = result.cutout(bits=bits)
            assert (cutout[..., 3] <= allowed * (full / 255)).all()
            premultiplied = result.cutout(premultiplied=True, bits=bits)
            assert not premultiplied[hidden].any()
        # Visible colors are below 128, hidden ones are not.
        assert result.cutout()[..., :3].max() < 140
        composite = result.composite((0, 200, 0))
        assert (composite[hidden] == (0, 200, 0)).all()


def test_estimated_colors_do_not_depend_on_hidden_ones(predictor, rgba):
    other = np.where(rgba[..., 3:] > 0, rgba, (0, 255, 9, 0))
    results = [
        predictor.predict(box=BOX, refine=refine, image=predictor.encode(image.astype(np.uint8)))
        for image in (rgba, other)
        for refine in (None, "tiles")
    ]
    np.testing.assert_array_equal(results[0].cutout(), results[2].cutout())
    np.testing.assert_array_equal(results[1].cutout(), results[3].cutout())


def test_model_sees_the_image_over_gray(predictor, rgba):
    alpha = rgba[..., 3:] / 255
    seen = np.rint(alpha * rgba[..., :3] + (1 - alpha) * NEUTRAL).astype(np.uint8)
    latent, expected = (predictor.encode(image).latent for image in (rgba, seen))
    torch.testing.assert_close(latent, expected, atol=0.02, rtol=0)  # rounding to 1/255
    stored = predictor.encode(rgba[..., :3]).latent
    assert (latent - stored).abs().max() > 0.1
    ignored = predictor.encode(rgba, ignore_alpha=True)
    np.testing.assert_array_equal(ignored.image, rgba[..., :3])
    assert ignored.opacity is None
    torch.testing.assert_close(ignored.latent, stored)
    alone = predictor.predict_batch([rgba], [{"box": BOX}], ignore_alpha=True)[0]
    assert (alone.image[0, 0] == HIDDEN).all() and alone.opacity is None


def test_opaque_alpha_has_no_effect(predictor, rgb):
    opaque = np.dstack([rgb, np.full((70, 90), 255, np.uint8)])
    encoded = predictor.encode(opaque)
    assert encoded.opacity is None
    expected = predictor.predict(box=BOX, image=predictor.encode(rgb))
    found = predictor.predict(box=BOX, image=encoded)
    np.testing.assert_array_equal(found.alpha, expected.alpha)


def test_transparent_image_has_an_empty_matte_and_a_warning(predictor, caplog):
    encoded = predictor.encode(np.zeros((20, 30, 4), np.uint8))
    assert not predictor.predict(image=encoded).alpha.any()
    assert "fully transparent" in caplog.text and "--ignore-alpha" in caplog.text


# --------------------------------------------------------------- kinds of transparency

COLORS = np.uint8([[[255, 0, 255], [40, 80, 120], [200, 60, 20]]])  # [1, 3, 3]
ALPHA = np.uint8([[0, 102, 255]])
SHOWN = np.uint8([[NEUTRAL, [40, 80, 120], [200, 60, 20]]])


def pillow_images():
    full = Image.fromarray(np.dstack([COLORS, ALPHA]))
    gray = full.convert("LA")
    for mode, image in (("RGBA", full), ("RGBa", full), ("PA", full), ("LA", gray), ("La", gray)):
        yield mode, image if image.mode == mode else image.convert(mode)
    palette = Image.fromarray(np.uint8([[0, 1, 2]]), "P")
    palette.putpalette(COLORS.ravel().tolist())
    palette.info["transparency"] = bytes([0, 102, 255])
    yield "P", palette


@pytest.mark.parametrize(("mode", "image"), list(pillow_images()))
def test_pillow_images_with_alpha(mode, image):
    assert image.mode == mode
    colors, alpha = read_pixels(image)
    np.testing.assert_allclose(alpha * 255, ALPHA, atol=1e-4)
    shown = SHOWN if "L" not in mode else np.array(Image.fromarray(SHOWN).convert("L"))[..., None]
    assert np.abs(colors[0].astype(int) - shown[0]).max() <= 2  # premultiplied values are rounded
    assert read_pixels(image, ignore_alpha=True)[1] is None


@pytest.mark.parametrize(
    ("values", "mode", "key"),
    [
        (np.uint8([[5, 6, 200]]), "L", 5),
        (COLORS, "RGB", (255, 0, 255)),
        (np.array([[False, True, True]]), "1", 0),
        (np.uint16([[300, 301, 65535]]), "I;16", 300),
    ],
)
def test_transparent_gray_levels_and_colors(tmp_path, values, mode, key):
    image = Image.fromarray(values)
    assert image.mode == mode
    image.save(tmp_path / "a.png", transparency=key)
    with Image.open(tmp_path / "a.png") as opened:
        opened.load()
        for _, alpha in (read_image_and_alpha(tmp_path / "a.png"), read_pixels(opened)):
            assert alpha.tolist() == [[0, 1, 1]]
    assert (read_pixels(tmp_path / "a.png")[0][0, 0] == NEUTRAL).all()


def png(bits, kind, samples, transparent=b""):
    """Return a PNG of one row, of depths that Pillow does not write."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    width = len(samples) * 8 // bits // channels
    head = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"tRNS", transparent) if transparent else b""]
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + samples)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def words(*values):
    return struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    ("data", "limits"),
    [
        (png(16, 6, words(9, 9, 9, 0, 9, 9, 9, 0x8010, 9, 9, 9, 0xFFFF)), (0, 0x8010, 65535)),
        (png(16, 4, words(9, 0, 9, 0x80F0, 9, 0xFFFF)), (0, 0x80F0, 65535)),
        (
            png(16, 2, words(0x1234, 0x5678, 0x9ABC, 9, 9, 9), words(0x1234, 0x5678, 0x9ABC)),
            (0, 65535),
        ),
        (png(2, 0, b"\x1b", words(0)), (0, 65535, 65535, 65535)),
        (png(2, 0, b"\x1b", words(2)), (65535, 65535, 0, 65535)),
        (png(4, 0, b"\x5a", words(5)), (0, 65535)),
    ],
)
def test_png_depths(tmp_path, data, limits):
    (tmp_path / "a.png").write_bytes(data)
    _, alpha = read_image_and_alpha(tmp_path / "a.png")
    exact = np.array(limits) / 65535
    assert (alpha[0] <= exact + 1e-7).all() and (alpha[0] >= exact - 1 / 256).all()


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "associated.tif"])
def test_files_with_alpha(tmp_path, name):
    size = (8, 8)  # WebP has no exact colors at 1 x 3
    rgba = np.dstack([COLORS, ALPHA]).repeat(8, axis=0)[:, [0, 0, 0, 1, 1, 1, 2, 2]]
    image = Image.fromarray(rgba)
    assert image.size == size
    if name.startswith("associated"):
        image = Image.fromarray(np.array(image.convert("RGBa")), "RGBA")
        image.save(tmp_path / name)  # then change the tag ExtraSamples from 2 to 1
        tag = struct.Struct("<HHIH")
        data = (tmp_path / name).read_bytes()
        assert tag.pack(338, 3, 1, 2) in data
        (tmp_path / name).write_bytes(data.replace(tag.pack(338, 3, 1, 2), tag.pack(338, 3, 1, 1)))
    else:
        image.save(tmp_path / name, **({"lossless": True, "exact": True} if "webp" in name else {}))
    colors, alpha = read_pixels(tmp_path / name)
    np.testing.assert_allclose(alpha * 255, rgba[..., 3], atol=1e-4)
    expected = np.where(rgba[..., 3:] > 0, rgba[..., :3], NEUTRAL)
    assert np.abs(colors.astype(int) - expected).max() <= 2


def test_arrays_and_tensors_with_alpha():
    rgba = np.dstack([COLORS, ALPHA])
    la = rgba[..., [1, 3]]
    for array, shown in ((rgba, SHOWN), (la, SHOWN[..., [1, 1, 1]])):
        for value in (
            array,
            array / 255.0,
            torch.from_numpy(array).permute(2, 0, 1),
            torch.from_numpy(array).permute(2, 0, 1).float() / 255,
        ):
            colors, alpha = read_pixels(value)
            np.testing.assert_array_equal(colors, np.where(ALPHA[..., None] > 0, shown, NEUTRAL))
            np.testing.assert_allclose(alpha * 255, ALPHA, atol=1e-4)
            assert read_pixels(value, ignore_alpha=True)[1] is None


def test_transparent_background_is_white():
    rgba = np.dstack([COLORS, ALPHA])
    expected = [[255, 255, 255], [169, 185, 201], [200, 60, 20]]
    assert np.abs(read_background(rgba)[0].astype(int) - expected).max() <= 1
    assert np.abs(as_background(rgba, (1, 3))[0].astype(int) - expected).max() <= 1


def test_folders(predictor, rgba, tmp_path, monkeypatch):
    predict_ones(monkeypatch)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.webp"):
        Image.fromarray(rgba).save(
            tmp_path / "in" / name, **({"lossless": True} if "w" in name else {})
        )
    for ignore in (False, True):
        batch = Batch(OutputSettings(), tmp_path / f"{ignore}")
        batch.add_inputs([tmp_path / "in"], [PromptRequest("auto")])
        batch.run(predictor, ignore_alpha=ignore)
        assert len(batch.done) == 2
        for path in batch.done:
            with Image.open(path) as written:
                alpha = np.array(written)[..., 3]
            if ignore:
                assert (alpha == 255).all()
            else:
                np.testing.assert_array_equal(alpha, rgba[..., 3])
