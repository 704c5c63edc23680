"""Processes find each other, report failures, and train like a single one."""

import argparse
import json
import multiprocessing
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from processes import as_task, describe, end, starter, train_killed_once
from runs import CONFIG, Run, assert_equal, finish, pause, settings
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, ProcessFailure

from SDMatte.cli.common import add_process_arguments, start_processes
from SDMatte.cli.main import main
from SDMatte.errors import ConfigError, DataError, ProcessError, RunStopped
from SDMatte.modeling import weights
from SDMatte.runtime.launch import _as_error, launch

FORKSERVER = multiprocessing.get_context("forkserver")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-processes", "0"], "must be at least 1, --max-restarts at least 0"),
        (["--num-machines", "0"], "must be at least 1, --max-restarts at least 0"),
        (["--max-restarts", "-1"], "must be at least 1, --max-restarts at least 0"),
        (["--num-machines", "2", "--machine-rank", "2"], "must be from 0 to 1 .*; got 2"),
        (["--num-machines", "2"], "--dist-url must be tcp://HOST:PORT of machine 0; got 'auto'"),
        (["--dist-url", "tcp://node1"], "--dist-url must be tcp://HOST:PORT of machine 0; got"),
        (["--dist-url", "file:///x"], "--dist-url must be tcp://HOST:PORT of machine 0; got"),
    ],
)
def test_invalid_counts(words, message, monkeypatch):
    parser = argparse.ArgumentParser()
    add_process_arguments(parser)
    with pytest.raises(ConfigError, match=message):
        start_processes(parser.parse_args(words), describe, (), "cpu")
    two = parser.parse_args(["--num-processes", "2"])
    with pytest.raises(ConfigError, match="The device cuda:1 is one GPU for several processes"):
        start_processes(two, describe, (), "cuda:1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(ConfigError, match="use `srun --ntasks-per-node=1 torchrun"):
        start_processes(two, describe, (), "cpu")


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "LOCAL_WORLD_SIZE"])
def test_an_incomplete_environment_of_torchrun(missing, monkeypatch, port):
    environ = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name in environ.keys() - {missing}:
        monkeypatch.setenv(name, environ[name])
    with pytest.raises(ConfigError, match=f"Process 0 of 1 has an incomplete .*{missing}"):
        launch(describe, device="cpu")


def test_unreachable_machines_are_reported(port):
    with pytest.raises(ProcessError, match="Machine 1 of 2 did not reach the others at tcp"):
        launch(describe, 1, 2, 1, f"tcp://127.0.0.1:{port}", args=("",), device="cpu", timeout=1)


def test_processes_of_torchrun_find_each_other(port, tmp_path):
    """Two machines of one process each, both on this machine."""
    tasks = []
    for rank in ("0", "1"):
        environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "1"}
        environ |= {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "GROUP_RANK": rank}
        task = FORKSERVER.Process(target=as_task, args=(environ, str(tmp_path)))
        task.start()
        tasks.append(task)
    for task in tasks:
        task.join(60)
        assert task.exitcode == 0
    for rank in (0, 1):
        assert json.loads((tmp_path / str(rank)).read_text()) == {
            "rank": rank,
            "world_size": 2,
            "local_rank": 0,
            "local_size": 1,
            "sum": 1,
            "gathered": [0, 1],
        }


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("killed", ProcessError, "^Process 1 of 2 was killed by SIGKILL .* others were stopped.$"),
        ("failed", DataError, "^An image.$"),
        ("stopped", RunStopped, "^Stopped by SIGTERM; earlier results are kept.$"),
    ],
)
def test_processes_of_one_machine_and_their_failures(how, error, message, tmp_path):
    with pytest.raises(error, match=message):
        launch(end, num_processes=2, args=(how, str(tmp_path)), device="cpu")
    for rank in (0, 1):
        content = json.loads((tmp_path / str(rank)).read_text())
        assert (content["local_rank"], content["local_size"], content["sum"]) == (rank, 2, 1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the launcher replaces it


def test_processes_end_when_their_parent_is_killed(tmp_path):
    first = FORKSERVER.Process(target=starter, args=(str(tmp_path),))
    first.start()
    numbers = [tmp_path / str(rank) for rank in (0, 1)]
    wait_until(lambda: all(path.exists() and path.read_text() for path in numbers))
    first.kill()
    first.join()
    pids = [int(path.read_text()) for path in numbers]
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (DataError("An image: bad."), DataError, "^An image: bad.$"),
        (ZeroDivisionError("0"), RuntimeError, "Process 1 of 2 failed:\n(.*\n)*ZeroDivisionError"),
        (None, ProcessError, "Process 1 of 2 ended with status 3 and without a message."),
    ],
)
def test_errors_of_processes_are_reraised(error, kind, text, tmp_path, monkeypatch):
    path = str(tmp_path / "error.json")
    if error is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", path)
        try:
            raise error
        except Exception as raised:
            ErrorHandler().record_exception(raised)
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=3, error_file=path)
    with pytest.raises(kind, match=text):
        raise _as_error("Process 1 of 2", failure)


@pytest.mark.slow
def test_a_restarted_run_equals_an_undisturbed_one(sample_root, tmp_path):
    words = ("train.evaluations=0", "train.max_iter=4")
    undisturbed, restarted = tmp_path / "undisturbed", tmp_path / "restarted"
    finish(settings(sample_root, undisturbed, *words), tmp_path / "log", num_processes=2)
    args = CONFIG, settings(sample_root, restarted, *words)
    launch(train_killed_once, 2, args=args, device="cpu", max_restarts=1)
    assert "Resuming from" in (restarted / "log.txt").read_text()
    # The same steps from the same state: equal bits.
    assert_equal(*(torch.load(run / "model_final.pth") for run in (undisturbed, restarted)))


def test_a_silent_process_ends_the_run_with_a_message(sample_root, tmp_path):
    words = settings(sample_root, tmp_path / "run", "train.ddp.timeout=5", "train.evaluations=0")
    run = Run(words, tmp_path / "log", ("before step", 1), action=pause, rank=1, num_processes=2)
    first, second = run.processes
    first.join(100)
    second.kill()
    assert first.exitcode == 2, run.log.read_text()
    text = run.log.read_text()
    assert text.splitlines()[-1].startswith("error: Process 0 of 2 lost the others: one of them")
    assert "did not respond for 5 s (train.ddp.timeout)" in text and "Traceback" not in text


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(sample_root, tmp_path):
    # The published losses are normalized per batch; this one is a plain mean.
    # The large eps makes AdamW's steps smooth in the gradients.
    # Box, points, box: each step leaves the other prompt's embedding unused.
    common = ["criterion.losses=[l1_loss]", "train.max_iter=3", "train.evaluations=0"]
    common += ["optimizer.eps=1.0", "optimizer.lr=10.0"]
    tensors = []
    for batch_size, accumulate, num_processes, search, compress in (
        *((2, 1, 1, False, False), (1, 1, 2, False, False), (1, 1, 2, True, False)),
        *((1, 1, 2, False, True), (1, 2, 1, False, False)),
    ):
        output = tmp_path / str(len(tensors))
        words = settings(sample_root, output, *common)
        words += [f"train.ddp.find_unused_parameters={search}"]
        words += [f"train.ddp.fp16_compression={compress}"]
        words += [f"dataloader.train.batch_size={batch_size}", f"train.accumulate={accumulate}"]
        words += ["train.checkpoints=3", "model.aux_input_list=[bbox_mask,point_mask]"]
        finish(words, tmp_path / "log", num_processes=num_processes)
        first = weights.read_tensors(output / "model_0000000.pth")
        final = weights.read_tensors(output / "model_final.pth")
        tensors.append({name: value - first[name] for name, value in final.items()})
    one, processes, searched, compressed, accumulated = tensors
    moved = max(value.abs().max() for value in one.values())
    assert moved > 1e-3
    for other in (processes, searched, accumulated):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * moved.item())
    torch.testing.assert_close(compressed, one, rtol=1e-2, atol=1e-3 * moved.item())
    # The compression is on: float16 has 11 bits.
    lost = max((compressed[n] - value).abs().max() for n, value in processes.items())
    assert lost > 1e-5 * moved


def test_a_port_in_use_is_named(port, sample_root, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", int(port))):
        words = settings(sample_root, tmp_path / "run", "--num-machines", "2")
        assert main(["train", CONFIG, *words, "--dist-url", f"tcp://127.0.0.1:{port}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"did not reach the others at tcp://127.0.0.1:{port}" in error
    assert "EADDRINUSE" in error
