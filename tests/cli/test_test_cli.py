"""``test``: several models at once, interruptions, predicting and scoring separately."""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from models import tiny_folder, tiny_model

from SDMatte.cli.common import DEFAULT_CONFIG, split_runs
from SDMatte.cli.main import main
from SDMatte.images.io import read_image

ROOT = Path(__file__).parents[2]
SMALL = str(ROOT / "configs" / "SDMatte_small.py")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, seed in (("a", 0), ("b", 1)):
        torch.save({"model": tiny_model(seed).state_dict()}, folder / f"{name}.pth")
    return folder


@pytest.fixture(autouse=True)
def _place(monkeypatch, tmp_path, sample_root, checkpoints):
    """A working directory with the checkpoints; the tiny sample set as data root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))
    for path in checkpoints.iterdir():
        (tmp_path / path.name).symlink_to(path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(*more):
    return [
        f"model.pretrained_model_name_or_path={tiny_folder()}",
        "model.load_weight=False",
        "model.image_prior=null",
        "dataloader.test.num_workers=0",
        "dataloader.test.batch_size=1",
        "dataloader.test.dataset.size=64",
        "train.device=cpu",
        *more,
    ]


def run(*words, status=0):
    words = [str(word) for word in words]
    chosen = {word.partition("=")[0] for word in words}
    defaults = [word for word in settings() if word.partition("=")[0] not in chosen]
    assert main(["test", *words, *defaults]) == status


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


def scores(folder):
    with (Path(folder) / "scores.csv").open(encoding="utf-8") as file:
        return [
            {k: v for k, v in row.items() if not k.endswith("path")} for row in csv.DictReader(file)
        ]


def mattes(folder):
    return {p.name: p.read_bytes() for p in sorted((Path(folder) / "mattes").iterdir())}


# ------------------------------------------------------------------ several models


def test_models_sets_prompts_and_baselines_in_one_call(tmp_path, sample_root, capsys):
    pair = f"{{image: {sample_root}/AIM-500/original, alpha: {sample_root}/AIM-500/mask}}"
    sets = f"dataloader.test.dataset.names=[AIM-500,{pair}]"
    shutil.copy(SMALL, tmp_path / "other.py")
    (tmp_path / "common").symlink_to(ROOT / "configs" / "common")
    words = [
        "a.pth",
        "b.pth",
        "other.py",
        "a.pth",
        "--baseline",
        "grabcut",
        "--output",
        "out",
        sets,
    ]
    words += ["dataloader.test.dataset.seed=3", "dataloader.test.dataset.limit=2"]
    run(*words, "test.prompts=[box,point,auto]")
    names = ["SDMatte_small_a", "SDMatte_small_b", "other_a"]
    tests = {f"{s}/{p}" for s in ("AIM-500", "pair") for p in ("box", "point", "auto")}
    folders = {f"{n}/{test}" for n in names for test in tests}
    folders |= {f"grabcut/{test}" for test in tests if "auto" not in test}  # needs a prompt
    found = {p.parent.relative_to("out").as_posix() for p in Path("out").rglob("summary.json")}
    assert found == folders
    table = capsys.readouterr().out
    for folder in folders:
        name, key = folder.split("/", 1)
        assert f"| {name}, {key} " in table
        assert len(mattes(f"out/{folder}")) == 2
    one = summary("out/SDMatte_small_b/AIM-500/point")
    digest = hashlib.sha256(Path("b.pth").read_bytes()).hexdigest()
    assert one["info"]["model sha256"] == digest != summary("out/other_a/pair/box")["info"]
    assert (one["prompt_seed"], one["protocol"], one["model"]) == (3, "official", "SDMatte_small_b")
    text = Path("out/SDMatte_small_b/AIM-500/point/summary.md").read_text()
    assert digest in text and "prompt seed: 3" in text
    same = [scores(f"out/{n}/AIM-500/box") for n in ("SDMatte_small_a", "other_a", "grabcut")]
    assert same[0] == same[1] != same[2]


def test_a_baseline_alone_needs_no_checkpoint():
    run("--baseline", "closed-form", "--baseline", "prompt", "test.prompts=[trimap]")
    closed, prompt = (summary(f"output/test/{n}/AIM-500/trimap") for n in ("closed-form", "prompt"))
    assert closed["scores"]["SAD"] < prompt["scores"]["SAD"]


def test_configs_are_followed_by_their_checkpoints():
    words = ["a.pth", "x=1", "c.py", "d.pth", "e.pth", "f.yaml", "y=[2]"]
    runs = [(DEFAULT_CONFIG, "a.pth"), ("c.py", "d.pth"), ("c.py", "e.pth"), ("f.yaml", None)]
    assert split_runs(words) == (runs, ["x=1", "y=[2]"])
    assert split_runs([]) == ([(DEFAULT_CONFIG, None)], [])


# ------------------------------------------------------------------- interruptions


def test_interrupted_tests_are_resumed(caplog):
    run("a.pth", "--output", "whole", "test.prompts=[box,mask]")
    run("a.pth", "--output", "half", "test.prompts=[box,mask]")
    whole, half = Path("whole/AIM-500/box"), Path("half/AIM-500/box")
    # As if killed while writing the second line, after the third matte.
    lines = (half / "progress.jsonl").read_text().splitlines(keepends=True)
    (half / "progress.jsonl").write_text(lines[0])
    (half / "progress.0.jsonl").write_text(lines[1] + lines[2][:-9])
    *_, cut, last = sorted((half / "mattes").iterdir())
    last.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    for name in ("summary.json", "summary.md", "scores.csv", "worst_and_best.png"):
        (half / name).unlink()
    kept = sorted((half / "mattes").iterdir())[0]
    times = kept.stat().st_mtime_ns
    other = next(Path("half/AIM-500/mask/mattes").iterdir())
    times_other = other.stat().st_mtime_ns
    caplog.set_level("INFO")
    run("a.pth", "--output", "half", "test.prompts=[box,mask]")
    assert "half/AIM-500/box: resuming, 1 of 4 images are done" in caplog.text
    assert "half/AIM-500/mask: resuming, 4 of 4 images are done" in caplog.text
    assert kept.stat().st_mtime_ns == times and other.stat().st_mtime_ns == times_other
    assert scores(half) == scores(whole) and mattes(half) == mattes(whole)
    assert {p.name for p in half.iterdir()} == {p.name for p in whole.iterdir()}


def test_resumed_tests_form_the_same_batches():
    """The last digits of a network's output depend on the rest of the batch."""
    words = ["a.pth", "test.protocol=corrected", "dataloader.test.batch_size=3"]
    run(*words, "--output", "whole")
    run(*words, "--output", "half")
    whole, half = Path("whole/AIM-500/box"), Path("half/AIM-500/box")
    next((half / "mattes").glob("0001_*")).unlink()
    lines = (half / "progress.jsonl").read_text().splitlines(keepends=True)
    (half / "progress.jsonl").write_text("".join(s for s in lines if '"0001_' not in s))
    run(*words, "--output", "half")
    assert scores(half) == scores(whole)
    assert mattes(half) == mattes(whole)


OTHERS = [
    (["b.pth"], "model sha256 "),
    (["a.pth", "test.protocol=corrected"], "protocol official (now corrected)"),
    (["a.pth", "dataloader.test.dataset.seed=1"], "prompt seed 0 (now 1)"),
    (["a.pth", "--prompts-from", "p.json"], "prompts sha256 null (now "),
    (["a.pth", "dataloader.test.dataset.limit=2"], "samples "),
    (["a.pth", "dataloader.test.dataset.settings.point_radius=4"], "settings.point_radius 11.2"),
    (["a.pth", "model.use_attention_mask=False"], "model settings "),
    (["a.pth", "test.use_captions=False"], "use_captions true (now false)"),
    (["--baseline", "prompt"], "baseline null (now prompt)"),
]


def test_other_results_are_refused_or_replaced(capsys):
    run("a.pth", "--output", "out", "--save-prompts", "p.json")
    before = mattes("out/AIM-500/box"), summary("out/AIM-500/box")
    for words, difference in OTHERS:
        run(*words, "--output", "out", status=2)
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: out/AIM-500/box holds results made with ")
        assert difference in error and "--restart" in error
    assert (mattes("out/AIM-500/box"), summary("out/AIM-500/box")) == before
    words = ["a.pth", "dataloader.test.dataset.limit=2", "--output", "out"]
    run(*words, "--restart")
    assert summary("out/AIM-500/box")["num_images"] == 2 == len(mattes("out/AIM-500/box"))
    written = Path("out/AIM-500/box/mattes/0000_tree.png").stat().st_mtime_ns
    run(*words)  # resumed
    assert Path("out/AIM-500/box/mattes/0000_tree.png").stat().st_mtime_ns == written
    run(*words, "--restart")  # replaced
    assert Path("out/AIM-500/box/mattes/0000_tree.png").stat().st_mtime_ns > written


def test_changed_files_and_code_are_detected(tmp_path, sample_root, monkeypatch, capsys):
    root = shutil.copytree(sample_root, tmp_path / "data")
    monkeypatch.setenv("SDMATTE_DATA_ROOT", str(root))
    words = ["--baseline", "prompt", "--output", "out", "dataloader.test.dataset.limit=1"]

    def assert_refused(*parts):
        run(*words, status=2)
        error = capsys.readouterr().err.splitlines()[-1]
        assert all(part in error for part in parts) and error.count("(now ") == len(parts), error

    run(*words)
    for role, folder in (("image", "original"), ("alpha", "mask"), ("trimap", "trimap")):
        path = min((root / "AIM-500" / folder).iterdir())
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert_refused(f"{role} files ")
        path.write_bytes(content)
        run(*words)  # equal content is the same file
    monkeypatch.setattr("SDMatte.evaluation.identity.code_hash", lambda: "abc")
    assert_refused("code ")


# ----------------------------------------------------- predicting and scoring separately


@pytest.mark.parametrize("protocol", ["official", "corrected"])
def test_predicting_and_scoring_separately(protocol, capsys):
    words = ["a.pth", f"test.protocol={protocol}", "test.use_trimap=True"]
    run(*words, "--output", "together")
    run(*words, "--output", "apart", "--only", "predict")
    folder = Path("apart/AIM-500/box")
    assert not (folder / "summary.json").exists() and len(mattes(folder)) == 4
    written = {p.name: p.stat().st_mtime_ns for p in (folder / "mattes").iterdir()}
    capsys.readouterr()
    run(*words, "--output", "apart", "--only", "score", "-j", "2")
    assert "a, AIM-500/box" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "mattes").iterdir()} == written
    together, apart = (summary(f"{n}/AIM-500/box") for n in ("together", "apart"))
    if protocol == "official":
        assert scores("together/AIM-500/box") == scores("apart/AIM-500/box")
    assert apart["scores"] == pytest.approx(together["scores"], rel=1e-3)
    assert apart["info"] == together["info"] and apart["trimap_restricted"]
    assert (folder / "worst_and_best.png").exists()


def test_an_output_that_is_a_file_is_named(capsys):
    Path("out").write_text("")
    run("a.pth", "--output", "out", status=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: Cannot write out/") and error.endswith("out is not a folder.")


def test_inputs_are_not_overwritten(tmp_path, sample_root, capsys):
    shutil.copytree(sample_root / "AIM-500" / "mask", tmp_path / "out" / "my" / "box" / "mattes")
    pair = f"{{name: my, image: {sample_root}/AIM-500/original, alpha: out/my/box/mattes}}"
    Path("prompts.json").write_text("{}")
    Path("hard.json").hardlink_to("prompts.json")
    words = [SMALL, "a.pth", "test.prompts=[box]"]
    for more in (
        [f"dataloader.test.dataset.names=[{pair}]", "--output", "out", "--restart"],
        ["--save-prompts", "a.pth"],
        ["--save-prompts", "hard.json", "--prompts-from", "prompts.json"],
        ["--save-prompts", sample_root / "AIM-500" / "mask" / os.listdir("out/my/box/mattes")[0]],
    ):
        run(*words, *more, status=2)
        assert "must not be overwritten: choose another output" in capsys.readouterr().err
    assert len(os.listdir("out/my/box/mattes")) == 4
    assert Path("a.pth").is_symlink() and Path("hard.json").read_text() == "{}"


def test_scoring_needs_mattes(capsys):
    run("a.pth", "--output", "out", "--only", "score", status=2)
    error = capsys.readouterr().err
    assert "Mattes to score are missing:\n  out/AIM-500/box: 4 of 4, such as 0000_" in error
    assert not Path("out").exists()
    run("a.pth", "--output", "out", "--only", "predict")
    next(Path("out/AIM-500/box/mattes").iterdir()).unlink()
    run("a.pth", "--output", "out", "--only", "score", status=2)
    assert "1 of 4" in capsys.readouterr().err
    run("a.pth", "--output", "out")  # predicts missing mattes, scores all
    assert len(scores("out/AIM-500/box")) == 4


# ------------------------------------------------------------------------------ outputs


def test_scores_without_saved_mattes():
    run("a.pth", "--output", "out", "test.save_mattes=False", "test.error_maps=True")
    folder = Path("out/AIM-500/box")
    assert {p.name for p in folder.iterdir()} == {
        "progress.jsonl", "scores.csv", "summary.json", "summary.md"
    }  # fmt: skip
    run("a.pth", "--output", "out")  # mattes are requested: predicted again
    assert len(mattes(folder)) == 4


def test_error_maps(sample_root):
    run("a.pth", "--output", "out", "test.error_maps=True")
    for path in (sample_root / "AIM-500" / "mask").iterdir():
        error = read_image(Path("out/AIM-500/box/errors", f"{path.stem}.png"))
        assert error.shape == read_image(path).shape and error.any()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--baseline", "magic"], "Unknown baseline 'magic'; choose from prompt, grabcut, grabcu"),
        (["--baseline", "grabcut", "test.prompts=[auto]"], "The baseline grabcut supports point,"),
        (["a.pth", "c.pth"], "Checkpoint file c.pth not found."),
        (["a.pth", "a.pth"], "The same config and checkpoint are given twice."),
        (["a.pth", "-j", "-2"], "test.num_workers must be at least 0; got -2."),
        (["a.pth", "test.protocol=x"], "Unknown protocol 'x'"),
        (["a.pth", "test.prompts=[]"], "test.prompts is empty."),
        (["a.pth", "dataloader.test.dataset.size=72"], "dataloader.test.dataset.size must be a mu"),
        (["a.pth", "--only", "predict", "test.save_mattes=False"], "needs test.save_mattes=True"),
        (
            ["a.pth", "dataloader.test.dataset.names=[AIM-500,AIM-500]"],
            "Two test sets are named AIM-500",
        ),
        (["a.pth", "dataloader.test.dataset.names=[]"], "No test set. Add a test set with"),
        (
            [
                "a.pth",
                "test.use_trimap=True",
                "dataloader.test.dataset.names=[{image: AIM-500/original, alpha: AIM-500/mask}]",
            ],
            "test.use_trimap=True needs trimaps, and pair has none.",
        ),
        (
            ["a.pth", "dataloader.test.dataset.perturb={box: -1}"],
            "perturb.box must be greater than -0.5; got -1",
        ),
        (
            ["configs/SDMatte.py", "a.pth", "configs/SDMatte_small.py", "--save-prompts", "p"],
            "--save-prompts needs a single config",
        ),
    ],
)
def test_errors_are_one_sentence(tmp_path, capsys, words, sentence):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "output" / "SDMatte_small").mkdir(parents=True)
    (tmp_path / "output" / "SDMatte_small" / "model_final.pth").symlink_to(tmp_path / "b.pth")
    run(*words, "--output", "out", status=2)
    captured = capsys.readouterr()
    error = captured.err.strip().splitlines()[-1]
    assert error.startswith("error: ") and sentence in error
    assert captured.out == ""
