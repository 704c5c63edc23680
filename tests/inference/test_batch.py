"""Many pictures: what is planned, what is written, and what does not stop the rest."""

import io
import json
import logging

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from SDMatte.errors import ConfigError, DataError, OutputError
from SDMatte.images.io import read_alpha, read_image, write_image
from SDMatte.inference.batch import run_jobs
from SDMatte.inference.jobs import (
    BatchReport,
    Job,
    OutputSettings,
    pending_jobs,
    plan_listed,
    plan_many,
    plan_single,
)
from SDMatte.prompts.requests import PromptRequest, read_prompt_file

AUTO = PromptRequest("auto")
BOX = PromptRequest("box", [5, 5, 30, 30])


@pytest.fixture
def folder(tmp_path, picture):
    """Three pictures and something else."""
    for name in ("a.png", "b.jpg", "c.webp"):
        write_image(tmp_path / "in" / name, picture)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


def outputs(jobs):
    return [job.output for job in jobs]


def make(predictor, jobs, overwrite=False, **settings):
    report = BatchReport()
    run_jobs(predictor, pending_jobs(jobs, overwrite, report), OutputSettings(**settings), report)
    return report


def test_names_of_outputs(folder, tmp_path):
    photo, out = folder / "a.png", tmp_path / "out"
    assert outputs(plan_single(photo, [AUTO], None, ".png")) == [folder / "a_matte.png"]
    assert outputs(plan_single(photo, [AUTO], out / "x.webp", ".png")) == [out / "x.webp"]
    assert outputs(plan_single(photo, [AUTO], out, ".tif")) == [out / "a.tif"]
    assert outputs(plan_single(photo, [AUTO, BOX], out, ".png")) == [
        out / "a_1.png",
        out / "a_2.png",
    ]
    names = ["a.png", "b.png", "c.png"]
    assert outputs(plan_many([folder], [AUTO], out, ".png")) == [out / name for name in names]
    beside = tmp_path / "in_mattes"
    assert outputs(plan_many([folder], [AUTO], None, ".png")) == [beside / name for name in names]
    listed = {"a.png": [AUTO], "deep/d.jpg": [AUTO, BOX]}
    assert outputs(plan_listed(folder, listed, out, ".png")) == [
        out / "a.png",
        out / "deep/d_1.png",
        out / "deep/d_2.png",
    ]


def test_plans_that_cannot_be(folder, tmp_path):
    photo = folder / "a.png"
    with pytest.raises(ConfigError, match="2 mattes need a folder to go to"):
        plan_single(photo, [AUTO, BOX], tmp_path / "x.png", ".png")
    with pytest.raises(ConfigError, match="-o FOLDER"):
        plan_many([photo, folder], [AUTO], None, ".png")
    with pytest.raises(ConfigError, match="x.png is a file"):
        plan_many([folder], [AUTO], tmp_path / "x.png", ".png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="There is no picture in"):
        plan_many([tmp_path / "empty"], [AUTO], None, ".png")


def test_a_run_goes_on_where_it_was(predictor, folder, tmp_path):
    jobs = plan_many([folder], [AUTO], tmp_path / "out", ".png")
    assert len(make(predictor, jobs[:1]).done) == 1
    before = jobs[0].output.stat().st_mtime_ns
    report = make(predictor, jobs)
    assert (len(report.done), report.skipped) == (2, [jobs[0].output])
    assert jobs[0].output.stat().st_mtime_ns == before
    assert report.summary() == "2 mattes written, 1 were there already."
    assert len(make(predictor, jobs, overwrite=True).done) == 3
    assert jobs[0].output.stat().st_mtime_ns > before


def test_one_bad_file_does_not_stop_the_rest(predictor, folder, tmp_path, caplog):
    (folder / "b.jpg").write_bytes(b"not a picture")
    (folder / "a.jpg").write_bytes((folder / "a.png").read_bytes())
    jobs = plan_many([folder], [AUTO], tmp_path / "out", ".png")
    jobs.append(Job(folder / "a.png", PromptRequest("box", [5, 5, 900, 9]), tmp_path / "box.png"))
    jobs.append(Job(folder / "c.webp", PromptRequest("mask", folder), tmp_path / "mask.png"))
    jobs.append(Job(folder / "a.png", PromptRequest("mask", tmp_path), tmp_path / "none.png"))
    report = make(predictor, jobs)
    reasons = {f"{job.image.name}>{job.output.name}": reason for job, reason in report.failed}
    assert "a.jpg already: rename one of the two images" in reasons["a.png>a.png"]
    assert "it is not an image" in reasons["b.jpg>b.png"]
    assert "does not fit the image" in reasons["a.png>box.png"]
    assert "has no partner" in reasons["a.png>none.png"]
    assert len(report.done) == 3 and len(report.failed) == 4  # one name, two pictures: a.jpg's
    errors = [r.levelno for r in caplog.records if r.levelno > logging.WARNING]
    assert errors == [logging.ERROR] * 4
    assert (tmp_path / "mask.png").exists()  # the picture's own brightness as its mask
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_picture_is_encoded_once_for_its_prompts(tiny, predictor, folder, tmp_path):
    encoded = []
    handle = tiny.vae.encoder.register_forward_hook(lambda module, args, out: encoded.append(1))
    try:
        make(predictor, plan_single(folder / "a.png", [AUTO, BOX, BOX], tmp_path / "out", ".png"))
    finally:
        handle.remove()
    assert len(encoded) == 1  # maps of boxes do not go through the whole encoder


@pytest.mark.numerics
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_cutouts_in_every_format(predictor, folder, tmp_path, suffix):
    jobs = plan_single(folder / "a.png", [BOX], tmp_path / "out", suffix)
    assert make(predictor, jobs).done
    with Image.open(jobs[0].output) as written:
        rgba = np.array(written)
    encoded = predictor.encode(folder / "a.png")
    result = predictor.predict(box=BOX.value, image=encoded)
    np.testing.assert_array_equal(rgba, result.cutout())  # the same prediction, repeated


@pytest.mark.numerics
def test_mattes_of_8_and_16_bits_and_composites(predictor, folder, tmp_path):
    """Predictions are repeated, so what is written has the bits of the result."""
    jobs = plan_single(folder / "a.png", [BOX], tmp_path / "out.png", ".png")
    result = predictor.predict(box=BOX.value, image=predictor.encode(folder / "a.png"))
    for bits in (8, 16):
        make(predictor, jobs, overwrite=True, kind="alpha", bits=bits)
        error = np.abs(read_alpha(jobs[0].output) - result.alpha).max()
        assert error <= 0.5 / (2**bits - 1) + 5e-6  # half a step, and rounding in float32
    make(predictor, jobs, overwrite=True, kind="composite", background="#102030")
    np.testing.assert_array_equal(read_image(jobs[0].output), result.composite((16, 32, 48)))
    make(predictor, jobs, overwrite=True, premultiplied=True)
    with Image.open(jobs[0].output) as written:
        np.testing.assert_array_equal(np.array(written), result.cutout(premultiplied=True))
    for premultiplied in (False, True):
        make(predictor, jobs, overwrite=True, premultiplied=premultiplied, bits=16)
        deep = cv2.cvtColor(cv2.imread(str(jobs[0].output), -1), cv2.COLOR_BGRA2RGBA)
        np.testing.assert_array_equal(deep, result.cutout(premultiplied, bits=16))
        assert np.abs(deep[..., 3] / 65535 - result.alpha).max() <= 0.5 / 65535 + 5e-6
        assert np.abs(deep / 257 - result.cutout(premultiplied)).max() <= 0.51
    with pytest.raises(ConfigError, match="bits is 8 or 16"):
        result.cutout(bits=12)


def test_colors_orientation_and_metadata(predictor, picture, tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # a quarter turn
    path = tmp_path / "photo.tif"
    in_lab = ImageCms.profileToProfile(Image.fromarray(picture), srgb, lab, outputMode="LAB")
    in_lab.save(path, exif=exif, dpi=(300, 300))  # with the profile of its own colours
    assert "icc_profile" in Image.open(path).info
    upright = np.rot90(picture, -1)
    for suffix, bits in ((".png", 8), (".webp", 8), (".tif", 8), (".png", 16)):
        jobs = plan_single(path, [AUTO], tmp_path / f"{bits}{suffix}", suffix)
        assert make(predictor, jobs, bits=bits).done
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
    jobs = plan_single(path, [AUTO], tmp_path / "composite.png", ".png")
    make(predictor, jobs, kind="composite", background="#0096da")
    with Image.open(jobs[0].output) as written:  # one profile, right for background and object
        own = io.BytesIO(written.info["icc_profile"])
        shown = np.asarray(ImageCms.profileToProfile(written, own, srgb)).astype(int)
        assert np.abs(shown - np.asarray(written)).max() <= 1
    jobs = plan_single(path, [AUTO], tmp_path / "alpha.png", ".png")
    make(predictor, jobs, kind="alpha")
    with Image.open(jobs[0].output) as written:
        assert not {"icc_profile", "exif", "dpi"} & set(written.info)  # a matte is data


def test_a_background_is_read_once_and_before_the_rest(tmp_path, picture):
    path = write_image(tmp_path / "b.png", picture)
    np.testing.assert_array_equal(OutputSettings("composite", str(path)).background, picture)
    assert OutputSettings("composite", "#102030").background == (16, 32, 48)
    with pytest.raises(DataError, match="neither a file nor a colour"):
        OutputSettings("composite", "nowhere.png")


def test_what_cannot_be_written_is_said_before_anything_is_computed(folder, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "out.png").mkdir()
    targets = [tmp_path / "file" / "deep" / "x.png", tmp_path / "out.png"]
    targets += [tmp_path / f"{'x' * 300}.png"]
    jobs = [Job(folder / "a.png", AUTO, target) for target in targets]
    jobs.append(Job(folder / "none.png", AUTO, tmp_path / "y.png"))
    report = BatchReport()
    pending = pending_jobs(jobs, False, report)
    assert [job.output for job in pending] == targets[-1:]  # whose name is tried
    reasons = [reason for _, reason in report.failed]
    for reason, part in zip(
        reasons,
        ["is not a folder", "it is a folder", "does not exist"],
        strict=True,
    ):
        assert part in reason
    with pytest.raises(OutputError, match="must not be overwritten"):
        plan_many([folder], [AUTO], folder, ".png")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "mask"}, "one of cutout, alpha, composite"),
        ({"bits": 12}, "8 bits a channel"),
        ({"kind": "composite", "background": "red", "bits": 16}, "16 are for mattes and cut-outs"),
        ({"bits": 16, "suffix": ".tif"}, "no 16 bits here: use .png"),
        ({"kind": "alpha", "bits": 16, "suffix": ".webp"}, "no 16 bits"),
        ({"suffix": ".jpg"}, "no alpha channel"),
        ({"suffix": ".bmp"}, "no alpha channel"),
        ({"suffix": ".gif"}, "no format for pictures"),
        ({"kind": "alpha", "premultiplied": True}, "Only the colours of a cut-out"),
    ],
)
def test_outputs_that_cannot_be(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        OutputSettings(**settings)


JSON = {
    "a.png": {"box": [1, 2, 30, 40], "transparent": True},
    "b.jpg": [{"points": [[5, 6], [7, 8]]}, {"mask": "masks/b.png"}],
    "c.webp": {"auto": True},
}
CSV = """\
image,box,points,mask,auto,transparent
a.png,1 2 30 40,,,,yes
b.jpg,,"5,6,7,8",,,
b.jpg,,,masks/b.png,,0
c.webp,,,,1,
"""


def test_prompt_files(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(JSON))
    (tmp_path / "p.csv").write_text("\ufeff" + CSV)
    expected = {
        "a.png": [PromptRequest("box", [1, 2, 30, 40], True)],
        "b.jpg": [
            PromptRequest("points", [[5, 6], [7, 8]]),
            PromptRequest("mask", tmp_path / "masks" / "b.png"),
        ],
        "c.webp": [AUTO],
    }
    assert read_prompt_file(tmp_path / "p.json") == expected
    assert read_prompt_file(tmp_path / "p.csv") == expected


def test_prompts_are_loaded_for_their_picture(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    mask[1] = 255
    write_image(tmp_path / "masks" / "a.png", mask)
    image = tmp_path / "in" / "a.jpg"
    for value in (tmp_path / "masks", tmp_path / "masks" / "a.png"):
        loaded = PromptRequest("mask", value, True).load(image)
        np.testing.assert_array_equal(loaded["mask"], mask)
        assert loaded["transparent"] is True
        trimap = PromptRequest("trimap", value).load(image)["trimap"]
        np.testing.assert_array_equal(trimap, mask)
    assert AUTO.load(image) == {"transparent": False}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.txt", "", "to be a .json or a .csv file"),
        ("p.json", "{", "not valid JSON"),
        ("p.json", "[]", "must map the names"),
        ("p.json", "{}", "holds no prompt"),
        ("p.json", '{"a.png": 3}', "a.png: a prompt is written"),
        ("p.json", '{"a.png": {}}', "got none"),
        ("p.json", '{"a.png": {"box": [1], "auto": true}}', "has one of box, points"),
        ("p.json", '{"a.png": {"bbox": [1, 2, 3, 4]}}', "got bbox"),
        ("p.json", '{"a.png": {"auto": true, "transparent": "no"}}', "transparent='no'"),
        ("p.json", '{"a.png": {"mask": [1]}}', "mask is a file"),
        ("p.json", '{"../a.png": {"auto": true}}', "named relative to their folder"),
        ("p.json", "[" * 200_000, "not valid JSON"),
        ("p.json", '{"a": {"auto": true}, "a": {"auto": true}}', "'a' is there twice"),
        ("p.json", '{"": {"auto": true}}', "named relative to their folder"),
        ("p.json", '{".": {"auto": true}}', "named relative to their folder"),
        ("p.json", '{"a.png": {"box": [[1, 2, 3, 4], [5, 6, 7, 8]]}}', "box is a list of four"),
        ("p.csv", f"image,box\n{'a' * 200_000},1 2 3 4\n", "not valid CSV"),
        ("p.csv", "picture,box\n", "the column image"),
        ("p.csv", "image,box\na.png,1 two 3 4\n", "line 2: box is a list of numbers"),
        ("p.csv", "image,points\na.png,1 2 3\n", "points are pairs x y; got 3 numbers"),
        ("p.csv", "image,auto\na.png,maybe\n", "auto is 1 or 0"),
        ("p.csv", "image,auto\na.png,1,2\n", "no more values than columns"),
        ("p.csv", "image,box\na.png,\n", "has one of box"),
    ],
)
def test_prompt_files_that_are_not_understood(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_prompt_file(tmp_path / name)
    with pytest.raises(DataError, match="Cannot read"):
        read_prompt_file(tmp_path / "none.csv")


text = st.one_of(
    st.text(max_size=40),
    st.sampled_from([json.dumps(JSON), CSV]).flatmap(
        lambda whole: st.integers(0, len(whole)).map(lambda end: whole[:end])
    ),
    st.lists(st.sampled_from([*'{}[]:,"\n', "image", "box", "a.png", "1 2 3 4", "true"])).map(
        "".join
    ),
)


@settings(max_examples=150)
@given(suffix=st.sampled_from([".json", ".csv"]), content=text)
def test_prompt_files_are_understood_or_refused(tmp_path_factory, suffix, content):
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(content.encode("utf-8", "replace"))
    try:
        listed = read_prompt_file(path)
    except DataError as error:
        assert "\n" not in str(error)
        return
    jobs = plan_listed(path.parent, listed, path.parent / "out", ".png")
    pending_jobs(jobs, False, BatchReport())
