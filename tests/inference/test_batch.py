"""Batches: planning, writing, resuming, and jobs that fail."""

import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from SDMatte.errors import ConfigError, DataError, OutputError
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.inference.batch import Batch, Job
from SDMatte.inference.result import OutputSettings
from SDMatte.prompts.requests import PromptRequest

AUTO = PromptRequest("auto")
BOX = PromptRequest("box", [5, 5, 30, 30])


@pytest.fixture
def folder(tmp_path, rgb):
    """Three images and a text file."""
    for name in ("a.png", "b.jpg", "c.webp"):
        write_image(tmp_path / "in" / name, rgb)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    return tmp_path / "in"


def outputs(jobs):
    return [job.output for job in jobs]


def plan(output, inputs, *prompts, suffix=".png", listed=None):
    """Plan mattes of a file, a folder, a list of them, or the listed files of a folder."""
    batch = Batch(OutputSettings(suffix=suffix), output)
    if listed is not None:
        batch.add_listed(inputs, listed)
    elif isinstance(inputs, Path) and not inputs.is_dir():
        batch.add_image(inputs, prompts or [AUTO])
    else:
        inputs = inputs if isinstance(inputs, list) else [inputs]
        batch.add_inputs(inputs, prompts or [AUTO])
    return batch.jobs


def run(predictor, jobs, overwrite=False, **settings):
    batch = Batch(OutputSettings(**settings))
    batch.jobs = jobs
    batch.check(overwrite)
    batch.run(predictor)
    return batch


def test_names_of_outputs(folder, tmp_path):
    photo, out = folder / "a.png", tmp_path / "out"
    assert outputs(plan(None, photo)) == [folder / "a_matte.png"]
    assert outputs(plan(out / "x.webp", photo)) == [out / "x.webp"]
    assert outputs(plan(out, photo, AUTO, suffix=".tif")) == [out / "a.tif"]
    assert outputs(plan(out, photo, AUTO, BOX)) == [
        out / "a_1.png",
        out / "a_2.png",
    ]
    names = ["a.png", "b.png", "c.png"]
    assert outputs(plan(out, [folder])) == [out / name for name in names]
    beside = tmp_path / "in_mattes"
    assert outputs(plan(None, [folder])) == [beside / name for name in names]
    listed = {"a.png": [AUTO], "deep/d.jpg": [AUTO, BOX]}
    assert outputs(plan(out, folder, listed=listed)) == [
        out / "a.png",
        out / "deep/d_1.png",
        out / "deep/d_2.png",
    ]


@pytest.mark.parametrize(
    ("start", "given", "expected"),
    [
        ("in", ".", "in_mattes"),
        ("in", "./", "in_mattes"),
        ("in/sub", "..", "in_mattes"),
        ("in/sub", "../", "in_mattes"),
        (".", "in/", "in_mattes"),
        (".", "in/.", "in_mattes"),
        (".", "in/sub/..", "in_mattes"),
        ("in/sub", "../sub", "in/sub_mattes"),
    ],
)
def test_the_default_folder_is_beside_the_input(
    folder, tmp_path, monkeypatch, start, given, expected
):
    (folder / "sub").mkdir()
    write_image(folder / "sub" / "a.png", np.zeros((4, 4), np.uint8))
    monkeypatch.chdir(tmp_path / start)
    jobs = plan(None, [Path(given)])
    assert jobs[0].output.resolve() == tmp_path / expected / "a.png"
    listed = plan(None, Path(given), listed={"a.png": [AUTO]})
    assert outputs(listed) == outputs(jobs)[:1]


def test_the_root_folder_needs_an_output():
    with pytest.raises(ConfigError, match="/ has no folder beside it .* use -o FOLDER"):
        plan(None, [Path("/")])


def test_invalid_plans(folder, tmp_path):
    photo = folder / "a.png"
    with pytest.raises(ConfigError, match="2 mattes need an output folder"):
        plan(tmp_path / "x.png", photo, AUTO, BOX)
    with pytest.raises(ConfigError, match="-o FOLDER"):
        plan(None, [photo, folder])
    with pytest.raises(ConfigError, match="x.png is a file"):
        plan(tmp_path / "x.png", [folder])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No image found in"):
        plan(None, [tmp_path / "empty"])


def test_an_interrupted_batch_resumes(predictor, folder, tmp_path):
    jobs = plan(tmp_path / "out", [folder])
    assert len(run(predictor, jobs[:1]).done) == 1
    before = jobs[0].output.stat().st_mtime_ns
    batch = run(predictor, jobs)
    assert (len(batch.done), batch.skipped) == (2, [jobs[0].output])
    assert jobs[0].output.stat().st_mtime_ns == before
    assert batch.summary() == "2 mattes written, 1 already existed."
    assert len(run(predictor, jobs, overwrite=True).done) == 3
    assert jobs[0].output.stat().st_mtime_ns > before


def test_failures_do_not_stop_the_rest(predictor, folder, tmp_path, caplog):
    (folder / "b.jpg").write_bytes(b"not an image")
    (folder / "a.jpg").write_bytes((folder / "a.png").read_bytes())
    jobs = plan(tmp_path / "out", [folder])
    jobs.append(Job(folder / "a.png", PromptRequest("box", [5, 5, 900, 9]), tmp_path / "box.png"))
    jobs.append(Job(folder / "c.webp", PromptRequest("mask", folder), tmp_path / "mask.png"))
    jobs.append(Job(folder / "a.png", PromptRequest("mask", tmp_path), tmp_path / "none.png"))
    batch = run(predictor, jobs)
    reasons = {f"{job.image.name}>{job.output.name}": reason for job, reason in batch.failed}
    assert "already the matte of" in reasons["a.png>a.png"]
    assert "it is not an image" in reasons["b.jpg>b.png"]
    assert "does not fit the image" in reasons["a.png>box.png"]
    assert "has no partner" in reasons["a.png>none.png"]
    # Of the two images named a, a.jpg comes first.
    assert len(batch.done) == 3 and len(batch.failed) == 4
    errors = [r.levelno for r in caplog.records if r.levelno > logging.WARNING]
    assert errors == [logging.ERROR] * 4
    assert (tmp_path / "mask.png").exists()  # the folder itself as masks: each image's brightness
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_image_is_encoded_once_for_all_its_prompts(tiny, predictor, folder, tmp_path):
    encoded = []
    handle = tiny.vae.encoder.register_forward_hook(lambda module, args, out: encoded.append(1))
    try:
        run(predictor, plan(tmp_path / "out", folder / "a.png", AUTO, BOX, BOX))
    finally:
        handle.remove()
    assert len(encoded) == 1  # constant bands of prompt maps bypass the encoder


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_cutouts_in_all_formats(predictor, folder, tmp_path, suffix):
    jobs = plan(tmp_path / "out", folder / "a.png", BOX, suffix=suffix)
    assert run(predictor, jobs).done
    with Image.open(jobs[0].output) as written:
        rgba = np.array(written)
    encoded = predictor.encode(folder / "a.png")
    result = predictor.predict(box=BOX.value, image=encoded)
    np.testing.assert_array_equal(rgba, result.cutout())  # the same prediction, repeated


@pytest.mark.numerics
def test_mattes_of_8_and_16_bits_and_composites(predictor, folder, tmp_path):
    """The same prediction is repeated, so files equal it bit for bit after rounding."""
    jobs = plan(tmp_path / "out.png", folder / "a.png", BOX)
    result = predictor.predict(box=BOX.value, image=predictor.encode(folder / "a.png"))
    for bits in (8, 16):
        run(predictor, jobs, overwrite=True, kind="alpha", bits=bits)
        error = np.abs(read_alpha(jobs[0].output) - result.alpha).max()
        assert error <= 0.5 / (2**bits - 1) + 5e-6  # half a step, and float32 rounding
    run(predictor, jobs, overwrite=True, kind="composite", background="#102030")
    np.testing.assert_array_equal(read_image(jobs[0].output), result.composite((16, 32, 48)))
    run(predictor, jobs, overwrite=True, premultiplied=True)
    with Image.open(jobs[0].output) as written:
        np.testing.assert_array_equal(np.array(written), result.cutout(premultiplied=True))
    for premultiplied in (False, True):
        run(predictor, jobs, overwrite=True, premultiplied=premultiplied, bits=16)
        stored = cv2.cvtColor(cv2.imread(str(jobs[0].output), -1), cv2.COLOR_BGRA2RGBA)
        np.testing.assert_array_equal(stored, result.cutout(premultiplied, bits=16))
        assert np.abs(stored[..., 3] / 65535 - result.alpha).max() <= 0.5 / 65535 + 5e-6
        assert np.abs(stored / 257 - result.cutout(premultiplied)).max() <= 0.51
    with pytest.raises(ConfigError, match="bits must be 8 or 16"):
        result.cutout(bits=12)


def test_colors_orientation_and_metadata(predictor, rgb, tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # rotated by 90 degrees
    path = tmp_path / "photo.tif"
    in_lab = ImageCms.profileToProfile(Image.fromarray(rgb), srgb, lab, outputMode="LAB")
    in_lab.save(path, exif=exif, dpi=(300, 300))  # with the Lab profile
    assert "icc_profile" in Image.open(path).info
    upright = np.rot90(rgb, -1)
    for suffix, bits in ((".png", 8), (".webp", 8), (".tif", 8), (".png", 16)):
        jobs = plan(tmp_path / f"{bits}{suffix}", path, AUTO, suffix=suffix)
        assert run(predictor, jobs, bits=bits).done
        with Image.open(jobs[0].output) as written:
            assert written.size == (70, 90)  # upright
            stored = written.getexif()
            assert stored.get(0x0112, 1) == 1 and stored[0x010F] == "Maker"
            assert abs(float(written.info.get("dpi", (stored[0x011A],))[0]) - 300) < 0.1
            own = io.BytesIO(written.info["icc_profile"])
            shown = ImageCms.profileToProfile(written.convert("RGB"), own, srgb)
            solid = np.array(written.getchannel("A")) == 255
        error = np.abs(np.asarray(shown).astype(int) - upright)
        assert not solid.any() or np.median(error[solid]) <= 3
    jobs = plan(tmp_path / "composite.png", path)
    run(predictor, jobs, kind="composite", background="#0096da")
    with Image.open(jobs[0].output) as written:  # the profile fits background and object
        own = io.BytesIO(written.info["icc_profile"])
        shown = np.asarray(ImageCms.profileToProfile(written, own, srgb)).astype(int)
        assert np.abs(shown - np.asarray(written)).max() <= 1
    jobs = plan(tmp_path / "alpha.png", path)
    run(predictor, jobs, kind="alpha")
    with Image.open(jobs[0].output) as written:
        assert not {"icc_profile", "exif", "dpi"} & set(written.info)  # a matte is data


def test_backgrounds_are_read_at_once(tmp_path, rgb):
    path = write_image(tmp_path / "b.png", rgb)
    np.testing.assert_array_equal(OutputSettings("composite", str(path)).background, rgb)
    assert OutputSettings("composite", "#102030").background == (16, 32, 48)
    with pytest.raises(DataError, match="neither a file nor a color"):
        OutputSettings("composite", "nowhere.png")


def test_unwritable_outputs_are_found_early(folder, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "out.png").mkdir()
    targets = [tmp_path / "file" / "deep" / "x.png", tmp_path / "out.png"]
    targets += [tmp_path / f"{'x' * 300}.png"]
    jobs = [Job(folder / "a.png", AUTO, target) for target in targets]
    jobs.append(Job(folder / "none.png", AUTO, tmp_path / "y.png"))
    batch = Batch(OutputSettings())
    batch.jobs = jobs
    batch.check()
    assert outputs(batch.jobs) == targets[-1:]  # a name that is too long is only found later
    reasons = [reason for _, reason in batch.failed]
    expected = ("is not a folder", "it is a folder", "does not exist")
    assert all(part in reason for part, reason in zip(expected, reasons, strict=True))
    with pytest.raises(OutputError, match="must not be overwritten"):
        plan(folder, [folder])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "mask"}, "must be a cutout or alpha .* got 'mask' with 8"),
        ({"bits": 12}, "got 'cutout' with 12"),
        ({"kind": "composite", "background": "red", "bits": 16}, "a composite with 8"),
        ({"bits": 16, "suffix": ".tif"}, r"\.tif .* \(cutout, 16 bits .* use one of \.png\.$"),
        ({"kind": "alpha", "bits": 16, "suffix": ".webp"}, r"use one of \.png, \.tif"),
        ({"suffix": ".jpg"}, r"\(cutout, 8 bits per channel\): use one of \.png, \.webp"),
        ({"suffix": ".bmp"}, r"A \.bmp file cannot store the output"),
        ({"suffix": ".gif"}, r"A \.gif file cannot store the output"),
        ({"kind": "alpha", "premultiplied": True}, "Only a cutout can be premultiplied"),
    ],
)
def test_invalid_outputs(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        OutputSettings(**settings)
