"""The command line: errors of the user are one sentence and exit status 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from SDMatte.cli.common import DEFAULT_CONFIG, split_config, split_runs
from SDMatte.cli.main import COMMANDS, build_parser, main
from SDMatte.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(("words", "shown"), [([], "export-weights"), (["data"], "make-samples")])
def test_without_a_command_the_help_is_shown(words, shown, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: sdmatte") and shown in printed.out and not printed.err


def test_misspelled_options_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "train.epochs=1", "--resmue"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --resmue" in capsys.readouterr().err


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "diffusers", "detectron2", "cv2", "numpy")
    code = f"import SDMatte, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["train", "nowhere.py"], "Config file nowhere.py not found."),
        (["train", "train.epoch=1"], "Unknown setting train.epoch"),
        (["train", "a.py", "b.py"], "Unexpected argument 'b.py'"),
        (["train", "--num-machines", "2"], "--dist-url must be tcp://HOST:PORT"),
        (["train", "dataloader.train.dataset.root=nowhere"], "nowhere"),
        (["train", "dataloader.train.dataset.names=[Compositon-1K]"], "Composition-1K"),
        (["train", "train.device=tpu9"], "train.device=tpu9 is not available"),
        (["test"], "Checkpoint file output/SDMatte_small/model_final.pth not found."),
        (["score", "nowhere", "nowhere"], "nowhere"),
        (["train", "model.pretrained_model_name_or_path=README.md"], "README.md"),
    ],
)
def test_errors_are_one_sentence(argv, sentence, capsys, monkeypatch, tmp_path, sample_root):
    monkeypatch.delenv("SDMATTE_DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    if "README.md" in sentence:
        monkeypatch.setenv("SDMATTE_DATA_ROOT", str(sample_root))
        argv = [*argv, f"train.output_dir={tmp_path / 'run'}"]
    assert main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and sentence in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_the_shell_scripts_pass_errors_on():
    for script, words, sentence in (
        ("train.sh", ["nowhere.py"], "Config file nowhere.py not found."),
        (
            "test.sh",
            ["configs/SDMatte_small.py", "nowhere.pth"],
            "Checkpoint file nowhere.pth not found",
        ),
    ):
        command = ["bash", f"script/{script}", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert sentence in done.stderr and "Traceback" not in done.stderr


def test_files_and_settings():
    words = ["a.py", "train.epochs=3", "run=1/model.pth", "x.names=[{image: a b, alpha: c}]"]
    assert split_config(words) == ("a.py", words[1:])
    assert split_config(words[1:]) == (DEFAULT_CONFIG, words[1:])
    with pytest.raises(ConfigError, match="Unexpected argument 'c'"):
        split_config(["a", "c"])


def test_removed_options_name_the_alternative(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["matte", "a.png", "--auto", "--rgba"])
    assert ended.value.code == 2
    assert "error: --rgba was removed; it is the default." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["test", "--output=~/my runs"], "output"),
        (["test", "--prompts-from=$RUNS"], "prompts_from"),
        (["matte", "a.jpg", "--mask=${RUNS}"], "mask"),
        (["matte", "a.jpg", "--auto", "--model=~/my runs"], "model"),
        (["matte", "a.jpg", "--auto", "--background=$RUNS"], "background"),
        (["data", "check", "--output=~/my runs"], "output"),
        (["score", "a", "b", "--trimaps=~/my runs"], "trimaps"),
        (["export-weights", "~/my runs", "b.pth"], "checkpoint"),
    ],
)
def test_options_that_are_paths_are_expanded(words, name, monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUNS", "/home/me/my runs")
    args = build_parser(words[0]).parse_args(words)
    assert str(getattr(args, name)) == "/home/me/my runs"
    with pytest.raises(SystemExit):
        build_parser("score").parse_args(["score", "a", "$NOT_SET_AT_ALL"])
    assert "environment variable NOT_SET_AT_ALL in the path" in capsys.readouterr().err
    assert split_runs(["~/a.py", "$RUNS/b.pth"])[0] == [("/home/me/a.py", "/home/me/my runs/b.pth")]
