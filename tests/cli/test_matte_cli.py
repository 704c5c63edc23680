"""``matte``, for single images and folders."""

import os
import shutil
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from models import tiny_model
from PIL import Image

from SDMatte.cli.main import main
from SDMatte.images.io import read_alpha, write_image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(aux_input=None).save_pretrained(folder, inference={"resolution": 64})
    return str(folder)


@pytest.fixture
def matte(model, tmp_path, monkeypatch, capsys, caplog):
    """Run the command in a folder of images; return status, output and log."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg"):
        write_image(tmp_path / "in" / name, image)
        write_image(tmp_path / "masks" / f"{name[0]}.png", (image[..., 0] > 128))
    write_image(tmp_path / "black.png", np.zeros((60, 80), np.uint8))
    monkeypatch.chdir(tmp_path)

    caplog.set_level("INFO")

    def run(*words):
        caplog.clear()
        status = main(["matte", *words, "--model", model, "--device", "cpu"])
        captured = capsys.readouterr()
        logged = [record.getMessage() for record in caplog.records]
        return status, captured.out.strip(), "\n".join([*logged, captured.err.strip()]).strip()

    return run


def test_one_image(matte):
    box = ("--box", "10", "10", "60", "50")
    status, out, err = matte("in/a.png", *box, "-o", "out/x.png")
    assert (status, out) == (0, "Written: out/x.png")
    assert err.startswith("1 matte to make; loading ")
    with Image.open("out/x.png") as written:
        assert written.mode == "RGBA" and written.size == (80, 60)
        alpha = np.array(written)[..., 3] / 255
    for prompt in (("--points", "30", "30", "9", "9"), ("--mask", "masks/a.png"), ("--auto",)):
        assert matte("in/a.png", *prompt, "-o", "out/x.png", "--alpha-only")[0] == 0
        assert np.abs(read_alpha("out/x.png") - alpha).max() > 0.02
    assert matte("in/a.png", *box, "-o", "out/x.png", "--alpha-only", "--bits", "16")[0] == 0
    assert np.abs(read_alpha("out/x.png") - alpha).max() <= 0.51 / 255
    assert matte("in/a.png", *box, "--background", "white", "--format", "jpg")[0] == 0
    with Image.open("in/a_matte.jpg") as written:
        assert written.mode == "RGB"
    assert matte("in/a.png", *box, "--transparent", "--refine", "tiles", "-o", "y.webp")[0] == 0


def test_only_named_outputs_are_replaced(matte):
    shutil.copy("in/a.png", "in/b.png")
    before = Path("in/b.png").read_bytes()
    assert matte("in/b.jpg", "--auto", "-o", "in")[:2] == (
        0,
        "in/b.png already exists: replace it with --overwrite.",
    )
    assert Path("in/b.png").read_bytes() == before
    assert matte("in/b.jpg", "--auto", "-o", "in", "--overwrite")[:2] == (0, "Written: in/b.png")
    assert Path("in/b.png").read_bytes() != before
    assert matte("in/a.png", "in/a.png", "--auto", "-o", "out")[:2] == (0, "1 matte written.")


def test_folders_and_failed_images(matte):
    status, out, _ = matte("in", "--mask", "masks", "-o", "out")
    assert (status, out) == (0, "2 mattes written.")
    status, out, _ = matte("in", "--mask", "masks", "-o", "out")
    assert (status, out) == (0, "0 mattes written, 2 already existed.")
    Image.new("RGB", (10, 10)).save("in/c.png")
    status, out, err = matte("in", "--mask", "masks", "-o", "out", "--overwrite")
    assert (status, out) == (1, "2 mattes written, 1 failed.")
    assert "error: in/c.png: c.png has no partner" in err and "Traceback" not in err
    with open("prompts.csv", "w") as file:
        file.write("image,box\na.png,1 2 30 40\na.png,5 5 60 50\nnone.png,1 2 3 4\n")
    status, out, err = matte("in", "--prompts", "prompts.csv", "-o", "listed")
    assert (status, out) == (1, "2 mattes written, 1 failed, 2 files left out.")
    assert "2 images without a prompt left out: b.jpg, c.png." in err
    assert "none.png: the file does not exist" in err
    status, out, _ = matte("in/a.png", "in/b.jpg", "--auto", "-o", "two")
    assert (status, out) == (0, "2 mattes written.")


def test_other_files_are_counted_and_named(matte):
    for name in ("notes.txt", "layers.psd", ".DS_Store", "Thumbs.db", "day/c.txt"):
        os.makedirs(os.path.dirname(f"in/{name}"), exist_ok=True)
        open(f"in/{name}", "w").close()
    shutil.copy("in/a.png", "in/day/d.png")
    status, out, err = matte("in", "--mask", "masks", "-o", "out", "--alpha-only")
    assert (status, out) == (0, "2 mattes written, 3 files left out.")
    assert "in: 2 files left out, not images: layers.psd, notes.txt." in err
    assert "in: 1 image in 1 sub-folder left out: day (1). --recursive includes them." in err
    # Masks and mattes inside the folder are not inputs.
    shutil.copytree("masks", "in/masks")
    shutil.copytree("out", "in/out")
    status, out, err = matte("in", "--mask", "in/masks", "-o", "in/out", "--alpha-only")
    assert (status, out) == (0, "0 mattes written, 2 already existed, 3 files left out.")


def test_sub_folders_are_kept(matte):
    for name in ("in/day/a.png", "in/day/night/e.png"):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        shutil.copy("in/a.png", name)
    os.symlink(os.path.abspath("in"), "in/day/up")
    os.makedirs("masks/day/night")
    shutil.copy("masks/a.png", "masks/day/a.png")
    words = ("in", "--recursive", "--mask", "masks", "-o", "out", "--alpha-only")
    status, out, err = matte(*words)
    assert (status, out) == (1, "3 mattes written, 1 failed.")
    assert "in/day/night/e.png: e.png has no partner" in err and "masks/day/night" in err
    written = sorted(path.as_posix() for path in Path("out").rglob("*.png"))
    assert written == ["out/a.png", "out/b.png", "out/day/a.png"]
    shutil.copy("masks/a.png", "masks/day/night/e.png")
    status, out, _ = matte(*words)
    assert (status, out) == (0, "1 matte written, 3 already existed.")
    assert Path("out/day/night/e.png").is_file()


def test_names_are_matched_in_any_spelling(matte):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for name in ("a.png", "b.jpg"):
        os.remove(f"in/{name}")
    shutil.copy("masks/a.png", f"masks/{nfc}.Png")
    os.makedirs(f"in/{nfd}")
    shutil.copy("masks/a.png", f"in/{nfd}.JPG")  # its content decides
    shutil.copy("masks/a.png", f"in/{nfd}/{nfd}.png")
    status, out, _ = matte("in", "--mask", "masks", "-o", "out", "--alpha-only")
    assert (status, out) == (0, "1 matte written, 1 file left out.")
    assert os.listdir("out") == [f"{nfd}.png"]
    rows = (f"{nfc}.jpg,{nfc}.png", f"{nfd}.JPG,{nfd}.png", f"{nfc}/{nfd}.PNG,{nfc}.png")
    Path("masks/p.csv").write_text("\n".join(["image,mask", *rows]))
    status, out, _ = matte("in", "--prompts", "masks/p.csv", "-o", "listed", "--alpha-only")
    assert (status, out) == (0, "3 mattes written.")
    written = sorted(
        path.relative_to("listed").as_posix() for path in Path("listed").rglob("*.png")
    )
    assert written == sorted([f"{nfd}_1.png", f"{nfd}_2.png", f"{nfd}/{nfd}.png"])


@pytest.mark.parametrize(
    "words",
    [
        ["in/a.png", "--mask", "masks/a.png", "-o", "masks/a.png"],
        ["in/a.png", "--mask", "masks/a.png", "-o", "in/../masks/a.png"],
        ["in/a.png", "--mask", "masks", "-o", "masks/a.png"],
        ["in/a.png", "--mask", "masks", "-o", "masks"],
        ["in/a.png", "--trimap", "masks/a.png", "-o", "link/a.png"],
        ["in/a.png", "--mask", "masks/a.png", "-o", "hard.png"],
        ["in/a.png", "--auto", "--background", "masks/b.png", "-o", "masks/b.png"],
        ["in", "--mask", "masks", "-o", "masks", "--overwrite"],
        ["in", "--mask", "masks", "-o", "masks"],
        ["in", "--mask", "masks", "-o", "link"],
        ["in", "--auto", "-o", "in", "--overwrite"],
        ["in/a.png", "in/b.jpg", "--auto", "-o", "in", "--overwrite"],
        ["in", "--prompts", "in/p.csv", "-o", "in"],
        ["in", "--prompts", "in/p.csv", "-o", "masks", "--overwrite"],
    ],
)
def test_inputs_are_not_overwritten(matte, words):
    os.symlink("masks", "link")
    os.link("masks/a.png", "hard.png")
    Path("in/p.csv").write_text("image,mask\na.png,../masks/a.png\n")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    status, out, err = matte(*words, *([] if "--background" in words else ["--alpha-only"]))
    assert status == 2 and not out
    assert "must not be overwritten: choose another output." in err and "loading" not in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_checkpoint_without_its_configs_is_named(matte, capsys):
    Path("broken.pth").write_bytes(b"torn")
    assert main(["matte", "in/a.png", "--auto", "--model", "broken.pth", "-o", "x.png"]) == 2
    assert "error: broken.pth is not a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["in/a.png", "--box", "9", "9", "90", "20"], "The box (9, 9, 90, 20) does not fit"),
        (["in/a.png", "--box", "9", "9", "nan", "20"], "nan"),
        (["in/a.png", "--box", ".1", ".1", ".9", ".9"], "Did you mean 8 6 72 54?"),
        (["in/a.png", "--points", ".5", ".25"], "Did you mean 40 15?"),
        (["in/a.png", "--mask", "black.png"], "The mask is empty"),
        (["in/a.png", "--points", "1", "2", "3"], "points must be pairs x y; got 3 numbers"),
        (["none.png", "--auto"], "the file does not exist"),
        (
            ["in/a.png", "--auto", "-o", "x.jpg"],
            "A .jpg file cannot store the output (cutout, 8 bits",
        ),
        (["in/a.png", "--auto", "-o", "x.gif"], "A .gif file cannot store the output"),
        (
            ["in/a.png", "--auto", "--bits", "16", "-o", "x.tif"],
            "(cutout, 16 bits per channel): use one of .png.",
        ),
        (["in/a.png", "--auto", "--resolution", "50"], "must be a positive multiple of 32"),
        (["in/a.png", "--auto", "--dtype", "int8"], "dtype must be float32"),
        (["in/a.png", "--auto", "--background", "nowhere.png"], "neither a file nor a color"),
        (["in/a.png", "--auto", "--background", "rgb(300,0,0)"], "neither a file nor a color"),
        (["in/a.png", "--auto", "--resolution", "6400000"], "Out of memory on cpu"),
        (["in/a.png", "--auto", "--dtype", "float64"], "dtype must be float32"),
        (["in/a.png", "--auto", "--machine-rank", "3"], "--machine-rank must be from 0 to 0"),
        (["in/a.png", "--auto", "--dist-url", "x"], "--dist-url must be tcp://"),
        (["x" * 300, "--auto"], "File name too long"),
        (["in/a.png", "--auto", "-o", f"{'x' * 300}/y.png"], "File name too long"),
        (["in/a.png", "--auto", "--checkpoint", "x.pth"], "has no checkpoint named x.pth"),
        (["in/a.png", "--prompts", "x.csv"], "--prompts needs one folder of images"),
        (["in", "--prompts", "x.csv"], "Cannot read x.csv"),
        (["in", "nowhere", "--auto"], "-o FOLDER"),
        (["in", "--auto", "-o", "in"], "in is read by this command and must not be overwritten"),
        (["in", "--mask", "nowhere"], "--mask nowhere: file or folder not found"),
        (["in/a.png", "--auto", "-o", "in/a.png/x.png"], "in/a.png is not a folder"),
        (["in/a.png", "--auto", "-o", "in/a.png"], "in/a.png is read by this command"),
    ],
)
def test_errors_are_one_sentence(matte, words, sentence):
    status, _, err = matte(*words)
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: ") and sentence in last and "Traceback" not in err


def test_exactly_one_prompt_is_needed(matte, capsys):
    for words in (["in/a.png"], ["in/a.png", "--auto", "--box", "1", "1", "9", "9"]):
        with pytest.raises(SystemExit) as ended:
            matte(*words)
        assert ended.value.code == 2
        assert "--box" in capsys.readouterr().err


def test_errors_are_found_before_anything_is_loaded(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "other.png")
    Image.new("L", (9, 9), 7).save(tmp_path / "7.png")
    (tmp_path / "p.csv").write_text("image,box\na.png,0 0 .5 .5\n")
    code = """
import sys
from SDMatte.cli.main import main
words = sys.argv[1:]
status = main(["matte", *words])
print(status, [name for name in ("torch", "diffusers") if name in sys.modules])
"""
    for words in (
        ["none.png", "--auto"],
        ["a.png", "--auto", "--background", "nowhere.png"],
        ["a.png", "--mask", "nowhere.png"],
        ["a.png", "--points", "1"],
        ["a.png", "--auto", "-o", "a.gif"],
        ["a.png", "--box", "0", "0", "1", "1"],
        ["a.png", "--points", "9", "0"],
        ["a.png", "--mask", "other.png"],
        ["a.png", "--trimap", "7.png"],
        [".", "--prompts", "p.csv", "-o", "out"],
    ):
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "2 []", done.stderr
        assert "error: " in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.slow
def test_killed_runs_are_resumed(model, tmp_path):
    for number in range(15):
        image = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        write_image(tmp_path / "in" / f"{number:02}.png", image)
    words = ["matte", "in", "--auto", "--alpha-only", "-o", "out", "--model", model]
    command = [sys.executable, "-m", "SDMatte", *words, "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("out/*.png"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    whole = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*.png")}
    assert 3 <= len(whole) < 15
    (tmp_path / "out" / ".14.png.999999999.tmp").touch()  # as if killed while writing
    for path in whole:
        assert read_alpha(path).shape == (60, 80)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    expected = f"{15 - len(whole)} mattes written, {len(whole)} already existed."
    assert (done.returncode, done.stdout.strip()) == (0, expected)
    assert all(path.stat().st_mtime_ns == at for path, at in whole.items())
    assert len(list(tmp_path.glob("out/*"))) == len(list(tmp_path.glob("out/.*"))) + 15 == 15


def test_transparent_images(matte):
    rgba = np.zeros((60, 80, 4), np.uint8)
    rgba[..., 0], rgba[20:40, 30:60] = 255, (9, 99, 9, 255)
    Image.fromarray(rgba).save("c.png")
    assert matte("c.png", "--auto", "--bits", "16")[0] == 0
    found = np.array(Image.open("c_matte.png"))
    assert not found[rgba[..., 3] == 0][:, 3].any() and found[..., 3].any()
    assert found[..., 0].max() < 128
    assert matte("c.png", "--auto", "--background", "blue")[0] == 0
    assert (np.array(Image.open("c_matte.png"))[rgba[..., 3] == 0] == (0, 0, 255)).all()
    assert matte("c.png", "--auto", "--ignore-alpha")[0] == 0
    assert np.array(Image.open("c_matte.png"))[rgba[..., 3] == 0][:, 3].any()


def test_masks_of_0_and_1(matte):
    mask = np.array(Image.open("masks/a.png")) > 0
    assert matte("in/a.png", "--mask", "masks/a.png", "-o", "x.png")[0] == 0
    Image.fromarray(mask.astype(np.uint8)).save("one.png")
    assert matte("in/a.png", "--mask", "one.png", "-o", "y.png")[0] == 0
    same = np.array(Image.open("x.png")).astype(int) - np.array(Image.open("y.png"))
    assert np.abs(same).max() <= 1


def test_without_a_model(tmp_path, monkeypatch, caplog, capsys):
    """The small model is used, and the published one is mentioned."""
    monkeypatch.chdir(tmp_path)
    write_image("a.png", np.zeros((60, 80, 3), np.uint8))
    words = ["matte", "a.png", "--box", "10", "10", "60", "50", "-o", "b.png"]
    assert main(words) == 0 and Image.open("b.png").size == (80, 60)
    assert "bundled small model" in caplog.text and "LongfeiHuang/SDMatte" in caplog.text
    assert main([*words, "--checkpoint", "SDMatte_plus.pth"]) == 2
    assert "--checkpoint needs --model" in capsys.readouterr().err + caplog.text


def test_empty_names_are_refused(matte, capsys):
    for words in (["", "--auto"], ["in/a.png", "--auto", "--background", ""]):
        with pytest.raises(SystemExit):
            matte(*words)
        assert "must not be empty" in capsys.readouterr().err
