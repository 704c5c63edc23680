"""Processes find each other, report failures, and train as a single one does."""

import datetime
import json
import multiprocessing
import os
import re
import socket
import time
from pathlib import Path

import pytest
import torch
from processes import as_task, describe, end, starter
from runs import CONFIG, Run, finish, pause, settings

from SDMatte.cli.main import main
from SDMatte.errors import ConfigError, DataError, ProcessError, RunStopped
from SDMatte.modeling import weights
from SDMatte.runtime import launch as distributed
from SDMatte.runtime.launch import ProcessInfo, launch, slurm_process, torchrun_process
from SDMatte.runtime.launch import _Failure as Failure

SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]-ib",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
FORKSERVER = multiprocessing.get_context("forkserver")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_processes_from_the_environment():
    assert slurm_process({}) is None and torchrun_process({}) is None
    assert slurm_process(SLURM) == ProcessInfo(9, 16, 1, 1, "tcp://gpu07-ib:23456")
    elsewhere = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert slurm_process({**SLURM, **elsewhere}).address == "tcp://10.0.0.1:29500"
    # A batch script knows the number of tasks but is not one of them.
    batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}
    assert slurm_process(batch) is None
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "GROUP_RANK": "1"}
    with pytest.raises(ConfigError, match="torchrun process lacks MASTER_ADDR, MASTER_PORT."):
        torchrun_process(torchrun)
    assert torchrun_process({"RANK": "3"}) is None  # not torchrun's
    assert torchrun_process({**torchrun, **elsewhere}) == ProcessInfo(3, 4, 1, 1, "env://")


@pytest.mark.parametrize("name", [name for name in SLURM if name != "SLURM_JOB_ID"])
def test_incomplete_environments_are_named(name):
    environ = {key: value for key, value in SLURM.items() if key != name}
    with pytest.raises(ConfigError, match=f"SLURM process lacks {name}"):
        slurm_process(environ)
    with pytest.raises(ConfigError, match="SLURM_STEP_NUM_TASKS"):
        slurm_process({"SLURM_PROCID": "1"})
    with pytest.raises(ConfigError, match="SLURM_PROCID is 'x'; it must be an integer"):
        slurm_process({**SLURM, "SLURM_PROCID": "x"})
    with pytest.raises(ConfigError, match="SLURM_PROCID=16 and SLURM_STEP_NUM_TASKS=16"):
        slurm_process({**SLURM, "SLURM_PROCID": "16"})


def test_waiting_is_logged(port, caplog):
    patience = datetime.timedelta(seconds=1)
    info = ProcessInfo(0, 3, 0, 0, f"tcp://127.0.0.1:{port}")
    with pytest.raises(ProcessError, match=r"waited 1 s .*process 1, 2 did not join\.$"):
        distributed._meet(info, patience, announce=True)
    first, second = (record.message for record in caplog.records)
    until = r"until \d\d:\d\d:\d\d \(train.ddp.timeout=1 s\)"
    assert re.match(rf"Process 0 of 3 listens at tcp://127.0.0.1:{port}, {until}", first)
    assert "1 of 3 have joined, waiting for 1, 2, until" in second
    other = ProcessInfo(1, 3, 0, 1, f"tcp://127.0.0.1:{port}")
    with pytest.raises(
        ProcessError, match="Process 1 of 3 could not reach process 0 at tcp://127.0.0.1"
    ):
        distributed._meet(other, patience, announce=True)
    assert "Process 1 of 3 connects to process 0 at" in caplog.text


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("n[3,5]", "n3"),
        ("n[003-010]", "n003"),
        ("a-[1-2]-b,c", "a-1-b"),
    ],
)
def test_first_host(hosts, first):
    assert distributed._first_host(hosts) == first


def test_invalid_counts(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="one task per machine"):
        launch(describe, num_processes=8)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    with pytest.raises(ConfigError, match="Got 0 processes on machine 0 of 1"):
        launch(describe, num_processes=0)
    for dist_url in ("node1:29500", "tcp://node1", "file:///tmp/x"):
        with pytest.raises(
            ConfigError, match="--dist-url must be tcp://HOST:PORT of machine 0; got"
        ):
            launch(describe, num_machines=2, dist_url=dist_url)
    with pytest.raises(ConfigError, match="train.device=cuda:1 is one GPU for 2 processes"):
        launch(describe, num_processes=2, device="cuda:1")


@pytest.mark.parametrize("cluster", ["torchrun", "slurm"])
def test_tasks_of_a_cluster_find_each_other(cluster, port, tmp_path):
    """Two machines of one task each, both on this machine."""
    tasks = []
    for rank in ("0", "1"):
        environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if cluster == "slurm":
            environ |= {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
            environ |= {"SLURM_PROCID": rank, "SLURM_NODEID": rank}
        else:
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
        ("stopped", RunStopped, "^Saved.$"),
    ],
)
def test_processes_of_one_machine_and_how_they_end(how, error, message, tmp_path):
    with pytest.raises(error, match=message):
        launch(end, num_processes=2, args=(how, str(tmp_path)), device="cpu")
    for rank in (0, 1):
        content = json.loads((tmp_path / str(rank)).read_text())
        assert (content["local_rank"], content["local_size"], content["sum"]) == (rank, 2, 1)


def test_processes_end_when_their_parent_is_killed(tmp_path):
    first = FORKSERVER.Process(target=starter, args=(str(tmp_path),))
    first.start()
    numbers = [tmp_path / str(rank) for rank in (0, 1)]
    wait_until(lambda: all(path.exists() and path.read_text() for path in numbers))
    first.kill()
    first.join()
    pids = [int(path.read_text()) for path in numbers]
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def wait_until(condition, seconds=60):
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


def test_hung_processes_are_killed_when_another_fails(monkeypatch):
    monkeypatch.setattr(distributed, "GRACE", 0.1)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=time.sleep, args=(1000,)) for _ in range(2)]
    processes.insert(1, fork.Process(target=os._exit, args=(3,)))
    for process in processes:
        process.start()
    assert distributed._wait(processes) == [0, 2]
    assert not any(process.is_alive() for process in processes)


LOST = Failure(0, "ProcessError", "Process 0 of 2 lost the others.")


@pytest.mark.parametrize(
    ("reported", "died", "hung", "received", "error", "message"),
    [
        ([LOST, Failure(1, "DataError", "An image.")], {}, [], [], DataError, "An image."),
        ([LOST, Failure(1, "", "Trace")], {}, [], [], RuntimeError, "1 of 2 failed:\nTrace"),
        ([LOST], {1: 9}, [], [], ProcessError, "Process 1 of 2 was killed by SIGKILL"),
        # NCCL aborts when another process is gone.
        ([LOST, Failure(1, "", "Trace")], {1: 6}, [], [], RuntimeError, "Trace"),
        ([LOST], {1: 9}, [1], [], ProcessError, "others. Process 1 did not answer and was killed."),
        ([LOST, Failure(1, "RunStopped", "Saved.", 143)], {}, [], [15], RunStopped, "Saved."),
        ([], {}, [], [2], RunStopped, "Stopped by SIGINT; a.pth is kept."),
        ([], {}, [], [], ProcessError, "ended without a message"),
    ],
)
def test_the_original_error_is_reported(reported, died, hung, received, error, message):
    with pytest.raises(error, match=message):
        distributed._raise_cause(reported, died, hung, True, 2, received, lambda: "a.pth is kept")
    assert distributed._raise_cause([], {}, [], False, 2, [], str) is None


def test_a_silent_process_ends_the_run_with_a_message(sample_root, tmp_path):
    words = settings(sample_root, tmp_path / "run", "train.ddp.timeout=5", "train.evaluations=0")
    run = Run(words, tmp_path / "log", ("before step", 1), action=pause, rank=1, num_processes=2)
    first, second = run.processes
    first.join(100)
    second.kill()
    assert first.exitcode == 2, run.log.read_text()
    text = run.log.read_text()
    assert text.splitlines()[-1].startswith("error: Process 0 of 2 lost the others: one of them")
    assert "gave no answer for 5 s (train.ddp.timeout)" in text and "Traceback" not in text


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
    assert f"0 of 2 cannot listen at tcp://127.0.0.1:{port}: the port is in use" in error
