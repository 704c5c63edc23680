"""Checkpoints: atomic, limited in number, and readable as plain weights."""

import shutil
import time

import psutil
import pytest
import torch
from models import SMALL, tiny_model
from runs import CONFIG, Run, assert_same_run, checkpoints, fill_disk, finish, pause, settings

from SDMatte.cli.main import main
from SDMatte.engine.checkpoint import MatteCheckpointer, read_run
from SDMatte.errors import CheckpointError
from SDMatte.modeling import weights


class Counter:
    """Something with a state."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture
def checkpointer(tmp_path):
    return MatteCheckpointer(tiny_model(), tmp_path, counter=Counter())


def test_resumes_from_the_last_undamaged_checkpoint(checkpointer, tmp_path, caplog):
    for step in (9, 19, 29):
        checkpointer.checkpointables["counter"].value = step
        checkpointer.save_run(step)
    checkpointer.save_weights("model_best")  # a run cannot resume from it
    again = MatteCheckpointer(tiny_model(seed=1), tmp_path, counter=Counter())
    assert again.resume() and again.checkpointables["counter"].value == 29
    for name, value in checkpointer.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name

    truncated = tmp_path / "model_0000029.pth"
    truncated.write_bytes(truncated.read_bytes()[:-1000])
    assert again.resume() and again.checkpointables["counter"].value == 19

    damaged = tmp_path / "model_0000019.pth"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert again.resume() and again.checkpointables["counter"].value == 9
    assert "model_0000019.pth is damaged" in caplog.text

    for path in tmp_path.glob("model_0*.pth"):
        path.write_bytes(b"")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model_0000009.pth")
    with pytest.raises(CheckpointError, match="cannot resume .*0000009.pth is not the checkpoint"):
        again.resume()


@pytest.mark.parametrize("mark", [b"", b"\0\0", b"\xff\xfe", b"model_0000\0.pth"])
def test_a_garbled_mark_of_the_last_checkpoint(checkpointer, tmp_path, mark):
    for step in (9, 19):
        checkpointer.checkpointables["counter"].value = step
        checkpointer.save_run(step)
    checkpointer.save_weights("model_final")
    (tmp_path / "last_checkpoint").write_bytes(mark)
    again = MatteCheckpointer(tiny_model(), tmp_path, counter=Counter())
    assert again.resume() and again.checkpointables["counter"].value == 19
    assert again.is_complete()


def test_nothing_to_resume_from(checkpointer, tmp_path):
    assert not checkpointer.resume()
    checkpointer.save_weights("model_final")
    assert not checkpointer.resume()


def test_only_the_newest_are_kept_across_processes(checkpointer, tmp_path):
    checkpointer.save_weights("model_best")
    for step in (9, 19, 29):
        checkpointer.save_run(step)
    copy = tmp_path / "model_0000019_v2.pth"  # a copy made by the user
    copy.write_bytes(b"")
    later = MatteCheckpointer(checkpointer.model, tmp_path, counter=Counter())
    later.save_run(39, max_to_keep=2)
    kept = ["model_0000019_v2.pth", "model_0000029.pth", "model_0000039.pth", "model_best.pth"]
    assert checkpoints(tmp_path) == kept
    # A run that resumed from an older checkpoint: newer ones do not count.
    later.save_run(34, max_to_keep=1)
    assert checkpoints(tmp_path) == [kept[0], "model_0000034.pth", *kept[2:]]
    assert later.get_checkpoint_file().endswith("model_0000034.pth")
    assert copy.exists()


def test_checkpoints_of_another_kind_are_refused(checkpointer, tmp_path):
    checkpointer.save_run(0)
    other = MatteCheckpointer(tiny_model(), tmp_path, trainer=Counter())
    with pytest.raises(CheckpointError, match="has no trainer state"):
        other.resume()
    other = MatteCheckpointer(tiny_model(), tmp_path, counter=Counter(), adapters=Counter())
    with pytest.raises(CheckpointError, match="was saved with train.lora.enabled=False."):
        other.resume()
    other = MatteCheckpointer(torch.nn.Linear(1, 1), tmp_path, counter=Counter())
    with pytest.raises(CheckpointError, match="does not fit this Linear"):
        other.resume()


@pytest.mark.slow
def test_a_full_disk_costs_no_steps(whole, stateful, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    run = Run(stateful(output), log, at=("before step", 2), action=fill_disk)
    assert run.wait() == [2], log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last == (
        f"error: Cannot write {output / 'model_0000002.pth'}: File too large. Files saved before "
        "are kept."
    )
    assert "Traceback" not in log.read_text()
    assert checkpoints(output) == ["model_0000001.pth"]
    finish([*stateful(output), "--resume"], log)
    assert_same_run(whole, output)


def test_an_output_folder_that_cannot_be_created(sample_root, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["train", CONFIG, *settings(sample_root, tmp_path / "file" / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: Cannot create {tmp_path / 'file' / 'run'}: Not a directory."


def test_a_folder_with_a_run_is_not_overwritten(whole, stateful, capsys):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in whole.iterdir())
    assert main(["train", CONFIG, *stateful(whole)]) == 2
    assert "already holds a run: add --resume" in capsys.readouterr().err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in whole.iterdir()) == before


def test_a_folder_belongs_to_one_run_at_a_time(sample_root, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    more = ("train.evaluations=0", "train.max_iter=2", "dataloader.train.num_workers=1")
    words = settings(sample_root, output, *more)
    first = Run(words, tmp_path / "first.log", at=("step", 0), action=pause)
    process = psutil.Process(first.processes[0].pid)
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.1)
    before = (output / "log.txt").read_text()
    assert Run([*words, "--resume"], log).wait() == [2]
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"error: Another run is using {output}: wait for its end, or choose")
    assert (output / "log.txt").read_text() == before
    process.kill()  # its loader worker is still alive
    first.wait()
    finish([*words, "--resume"], log)


def test_a_run_does_not_overwrite_its_inputs(whole, sample_root, tmp_path, capsys):
    data = shutil.copytree(sample_root, tmp_path / "data")
    run, kept = tmp_path / "run", tmp_path / "kept.pth"
    run.mkdir()
    (run / "model_final.pth").write_bytes(b"weights")
    kept.hardlink_to(run / "model_final.pth")
    (tmp_path / "new").mkdir()
    config = shutil.copy(whole / "config.yaml", tmp_path / "new" / "config.yaml")
    for words in (
        [CONFIG, *settings(data, data / "Combined_Dataset/Training_set/combined_fg")],
        [CONFIG, *settings(data, run, f"train.init_checkpoint={kept}"), "--resume"],
        [str(config), *settings(data, tmp_path / "new")],
    ):
        assert main(["train", *words]) == 2
        assert "must not be overwritten" in capsys.readouterr().err
    assert kept.read_bytes() == b"weights" and sorted(run.iterdir()) == [run / "model_final.pth"]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_exported_weights_are_a_published_checkpoint(whole, tmp_path, suffix, capsys):
    source, target = whole / "model_0000005.pth", tmp_path / f"weights.{suffix}"
    assert main(["export-weights", str(source), str(target)]) == 0
    assert "tensors" in capsys.readouterr().out
    assert target.stat().st_size < source.stat().st_size / 2
    assert not [path for path in tmp_path.iterdir() if path != target]
    expected = torch.load(whole / "model_final.pth", weights_only=True)
    tensors = weights.read_tensors(target)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert any(name.startswith("text_encoder.text_model.") for name in tensors)


def test_only_our_models_are_exported(tmp_path, capsys):
    words = [str(SMALL / "vae" / "diffusion_pytorch_model.safetensors"), str(tmp_path / "x.pth")]
    assert main(["export-weights", *words]) == 2
    assert (
        "is not an SDMatte checkpoint; it must be a checkpoint of SDMatte or"
        in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_exports_into_an_invalid_folder(whole, tmp_path, suffix, capsys):
    (tmp_path / "file").touch()
    target = tmp_path / "file" / f"x.{suffix}"
    assert main(["export-weights", str(whole / "model_final.pth"), str(target)]) == 2
    assert f"Cannot write {target}: Not a directory." in capsys.readouterr().err


def test_an_export_does_not_overwrite_its_source(whole, tmp_path, capsys):
    source = tmp_path / "model.pth"
    source.write_bytes((whole / "model_final.pth").read_bytes())
    (tmp_path / "link.pth").symlink_to(source)
    (tmp_path / "hard.pth").hardlink_to(source)
    before = source.read_bytes()
    for name in ("model.pth", "link.pth", "hard.pth"):
        assert main(["export-weights", str(source), str(tmp_path / name)]) == 2
        assert "read by this command and must not be overwritten" in capsys.readouterr().err
    assert source.read_bytes() == before and (tmp_path / "link.pth").is_symlink()


def test_exports_need_a_known_suffix(whole, tmp_path, capsys):
    words = ["export-weights", str(whole / "model_final.pth"), str(tmp_path / "weights.bin")]
    assert main(words) == 2
    assert "must be written as .safetensors or .pth" in capsys.readouterr().err


def test_a_run_from_a_published_checkpoint_has_a_new_optimizer(whole, sample_root, tmp_path):
    start = f"train.init_checkpoint={whole / 'model_final.pth'}"
    words = settings(sample_root, tmp_path / "run", start, "train.max_iter=1", "optimizer.lr=0.0")
    finish([*words, "train.evaluations=0"], tmp_path / "log")
    tensors = weights.read_tensors(whole / "model_final.pth")
    run = read_run(tmp_path / "run" / "model_0000000.pth")
    assert all(torch.equal(run["model"][name], value) for name, value in tensors.items())
    state = run["trainer"]["optimizer"]["state"]
    assert state and all(value["step"] == 1 for value in state.values())
