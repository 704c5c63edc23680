"""``data``, and the prompt files of ``test``."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import tiny_folder, tiny_model

from SDMatte.cli.main import main
from SDMatte.data.catalog import TEST_SETS, TRAIN_SETS
from SDMatte.images.io import read_image

SMALL = str(Path(__file__).parents[2] / "configs" / "SDMatte_small.py")
SIZES = ["dataloader.train.dataset.size=64", "dataloader.test.dataset.size=64"]


@pytest.fixture(autouse=True)
def _place(monkeypatch, tmp_path, sample_root):
    """An empty working directory; the tiny sample set as data root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))


def rows(text):
    """Rows of a table by set and part."""
    words = (line.split() for line in text.splitlines())
    return {(w[0], w[1]): w[2:] for w in words if len(w) > 2 and w[1] in ("training", "test")}


# -------------------------------------------------------------------------- list


def test_list_knows_all_sets(capsys, monkeypatch, layout_root, sample_root):
    assert main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    assert str(sample_root) in printed
    known = {(n, "training") for n in TRAIN_SETS} | {(n, "test") for n in TEST_SETS}
    table = rows(printed)
    assert set(table) == known
    assert table["Composition-1K", "training"][:4] == ["yes", "18", "1293", "composite"]
    assert table["DIS-646", "training"][:2] == ["no", "0"]
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(layout_root))
    assert main(["data", "list", "--part", "test"]) == 0
    table = rows(capsys.readouterr().out)
    assert set(table) == {(n, "test") for n in TEST_SETS}
    assert {row[0] for row in table.values()} == {"yes"}


def test_list_of_a_config_and_of_pairs(capsys, sample_root):
    assert main(["data", "list", SMALL]) == 0
    assert set(rows(capsys.readouterr().out)) == {
        ("Composition-1K", "training"),
        ("AIM-500", "test"),
    }
    pair = f"{{image: {sample_root}/AIM-500/original, alpha: {sample_root}/AIM-500/mask, name: my}}"
    assert main(["data", "list", pair, "DIS-646", "AM-2K"]) == 0
    table = rows(capsys.readouterr().out)
    assert set(table) == {
        ("my", "training"), ("DIS-646", "training"), ("AM-2K", "training"), ("AM-2K", "test"),
    }  # fmt: skip
    assert table["my", "training"][:2] == ["yes", "4"]


def test_list_names_the_backgrounds(capsys, sample_root, monkeypatch):
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))
    assert main(["data", "list", "Composition-1K"]) == 0
    number = len(list((sample_root / "BG-20K").rglob("*.*")))
    row = ["BG-20K", "backgrounds", "yes", str(number), "20000", "BG-20K"]
    assert row in [line.split() for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setenv("SDMATTE_DATA_ROOT", "nowhere")
    assert main(["data", "list"]) == 0
    row = ["BG-20K", "backgrounds", "no", "0", "20000", "BG-20K"]
    assert row in [line.split() for line in capsys.readouterr().out.splitlines()]


# ------------------------------------------------------------------------- check


def test_check_of_valid_data(capsys, tmp_path):
    assert main(["data", "check", "-j", "0"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip().endswith("Training can start.")
    assert set(rows(printed)) == {("Composition-1K", "training"), ("AIM-500", "test")}
    for name in ("01_Composition-1K_training.png", "02_AIM-500_test.png"):
        sheet = Path("output/data_check", name)
        assert str(sheet) in printed and read_image(sheet).std() > 20


def test_check_of_damaged_data_exits_with_2(capsys, monkeypatch, tmp_path, sample_root):
    root = tmp_path / "copy"
    shutil.copytree(sample_root, root)
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(root))
    alpha = next((root / "AIM-500/mask").iterdir())
    alpha.write_bytes(b"")
    words = ["data", "check", SMALL, "-j", "0", "--output", "sheets"]
    assert main(words) == 2
    printed = capsys.readouterr().out
    assert f"  unreadable: Cannot read {alpha}: the file is empty." in printed
    assert "Training cannot start:\n- AIM-500 (test): 1 of 4 samples" in printed
    # A training without evaluations does not read the test set.
    assert main([*words, "train.evaluations=0"]) == 0
    assert main([*words, "--part", "train"]) == 0
    foreground = next((root / "Combined_Dataset/Training_set/combined_fg").iterdir())
    foreground.unlink()
    words += ["--part", "train"]
    capsys.readouterr()
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"  missing: {foreground}" in printed.replace(".png (image)", foreground.suffix)
    assert "Training can start, without 3 bad samples." in printed
    assert main([*words, "dataloader.train.dataset.max_bad_samples=2"]) == 2
    assert (
        "3 of 18 training samples are unusable; at most 2 may be (max_bad"
        in capsys.readouterr().out
    )


def test_sheets_do_not_overwrite_images(capsys, tmp_path, sample_root):
    data = shutil.copytree(sample_root / "AIM-500", tmp_path / "AIM-500")
    pair = f"{{image: {data}/original, alpha: {data}/mask, name: my}}"
    image = next((data / "original").iterdir())
    before = image.read_bytes()
    for words in (
        ["check", pair, "--output", str(data / "mask")],
        ["sample", pair, *SIZES, "--output", str(image)],
    ):
        assert main(["data", *words]) == 2
        assert "must not be overwritten" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_check_of_a_weighted_mix(capsys, sample_root):
    pair = f"{{image: {sample_root}/AIM-500/original, alpha: {sample_root}/AIM-500/mask}}"
    words = ["data", "check", "-j", "0", "--part", "train"]
    assert main([*words, "{name: Composition-1K, weight: 1}", f"{pair[:-1]}, weight: 10}}"]) == 0
    printed = capsys.readouterr().out
    assert "An epoch has 22 samples: 2 of Composition-1K (each sample 0.111 times), 20 of pair" in (
        printed
    )
    assert main([*words, "{name: Composition-1K, weight: 1}", pair]) == 2
    assert "have a weight or none; pair has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["check", "AIM"], "Unknown set 'AIM'; known are Composition-1K, DIS-646"),
        (
            ["list", "{name: AM-2K, weights: 2}"],
            "Unknown setting AM-2K.weights; did you mean weight",
        ),
        (["list", "{image: [a, b], alpha: c}"], "pair.image must be a string"),
        (
            ["list", "dataloader.train.dataset.names=5", SMALL],
            "a name or {image: DIR, alpha: DIR}; got 5",
        ),
        (["check", "--num-workers", "-1"], "--num-workers must be at least 0; got -1"),
        (["sample", "--count", "-2"], "--count must be at least 1; got -2"),
        (
            ["sample", "dataloader.train.dataset.seed=-1"],
            "dataloader.train.dataset.seed must be at least 0; got -1.",
        ),
        (["check", "DIS-646", "--part", "test"], "DIS-646 is not a test set"),
        (["check", "a.py"], "Config file a.py not found."),
        (["check", SMALL, "b.py"], "Only one config file is allowed; got"),
        (["list", "{image: a"], "{image: a is not a folder pair {image: DIR, alpha: DIR}"),
        (["list", "{image: a}"], "A folder pair needs both folders"),
        (
            ["list", SMALL, "dataloader.test.dataset.names=[]", "--part", "test"],
            "has no test set",
        ),
        (["sample", "DIS-646"], "Distinctions-646"),
        (["sample", "--count", "0"], "--count must be at least 1; got 0"),
        (["sample", "DIS-646", "--output", "x.xyz"], "x.xyz: the suffix must be one of"),
    ],
)
def test_errors_are_one_sentence(words, sentence, capsys):
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and sentence in error


def test_training_cannot_start_without_a_set(capsys):
    assert main(["data", "check", "DIS-646", "-j", "0"]) == 2
    assert "- DIS-646 (training): " in capsys.readouterr().out


# ------------------------------------------------------------------------ sample


def test_samples_follow_the_seed(capsys):
    def sheet(name, *words):
        path = Path(name)
        assert main(["data", "sample", *SIZES, "--count", "3", "--output", name, *words]) == 0
        assert f"The sheet is {path}." in capsys.readouterr().out
        return read_image(path)

    first = sheet("a.png")
    assert first.shape[1] == 6 * 192 and len(first) == 3 * (18 + 192)
    assert (sheet("b.png") == first).all()
    assert (sheet("c.png", "dataloader.train.dataset.seed=5") != first).any()
    test = sheet("e.png", "--part", "test")
    assert test.shape == first.shape and (test != first).any()
    assert sheet("f.jpg", "AIM-500").shape == first.shape  # only a test set


# -------------------------------------------------------------- prompts of a test


@pytest.fixture
def one_thread():
    """One thread: a second does not help with images this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_prompts_are_saved_and_reused(tmp_path, capsys, one_thread):
    checkpoint = tmp_path / "model.pth"
    torch.save({"model": tiny_model().state_dict()}, checkpoint)
    words = [SMALL, str(checkpoint), "dataloader.test.num_workers=0", *SIZES]
    words += [f"model.pretrained_model_name_or_path={tiny_folder()}", "model.load_weight=False"]
    words += ["model.image_prior=null"]
    words += ["test.prompts=[point,mask]"]

    def run(name, *more):
        assert main(["test", *words, "--output", name, *more]) == 0
        files = sorted(Path(name).rglob("summary.json"))
        return [json.loads(path.read_text()) for path in files]

    first = run("first", "--save-prompts", "kept/p.json", "dataloader.test.dataset.seed=1")
    other = run("other", "dataloader.test.dataset.seed=2")
    frozen = run("frozen", "--prompts-from", "kept/p.json", "--save-prompts", "again.json",
                 "dataloader.test.dataset.seed=2")  # fmt: skip
    assert len(first) == 2
    assert [r["scores"] for r in frozen] == [r["scores"] for r in first]
    assert [r["scores"] for r in other] != [r["scores"] for r in first]
    assert [r["prompt_seed"] for r in first] == [1, 1]
    assert [r["prompt_seed"] for r in frozen] == [None, None]
    assert all(r["info"]["prompts from"] == "kept/p.json" for r in frozen)
    assert Path("again.json").read_bytes() == Path("kept/p.json").read_bytes()

    capsys.readouterr()
    words = [word for word in words if "test.dataset.size" not in word]
    assert main(["test", *words, "--prompts-from", "kept/p.json"]) == 2
    assert "kept/p.json is for images of 64 pixels" in capsys.readouterr().err
    pair = "dataloader.test.dataset.names=[{image: AIM-500/original, alpha: AIM-500/mask}]"
    assert main(["test", *words, SIZES[1], pair, "--prompts-from", "kept/p.json"]) == 2
    assert "kept/p.json lacks the set pair; it has AIM-500." in capsys.readouterr().err
