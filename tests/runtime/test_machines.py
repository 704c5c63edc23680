"""A run on two machines: network namespaces of this one, joined by a virtual cable."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from runs import CONFIG, TIMINGS, Run, settings

from SDMatte.modeling import weights

ADDRESS = "10.77.0.1"
TIMEOUT = 5


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines():
    """Names of two namespaces; each has the end of the cable that bears its name."""
    names = [f"m{number}-{os.getpid()}" for number in (0, 1)]
    try:
        for name in names:
            ip("netns", "add", name)
        ends = (f"{names[0]} netns {names[0]} type veth peer {names[1]} netns {names[1]}").split()
        ip("link", "add", *ends)
        for name, address in zip(names, (ADDRESS, "10.77.0.2"), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", name, "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs iproute2 and the right to create network namespaces: {error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def evaluations(output):
    """Return the first record with scores."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    scores = ({k: v for k, v in line.items() if "/" in k and k not in TIMINGS} for line in lines)
    return next(filter(None, scores), None)


def moves(output):
    first, last = (weights.read_tensors(output / f"model_000000{step}.pth") for step in (0, 2))
    return {name: value - first[name] for name, value in last.items()}


@pytest.mark.slow
def test_two_machines_train_as_one_until_they_are_cut_off(machines, sample_root, tmp_path):
    # As in the test of two processes: a loss without normalization and smooth steps.
    common = ["criterion.losses=[l1_loss]", "optimizer.eps=1.0", "optimizer.lr=10.0"]
    common += ["train.max_iter=3000", "train.checkpoints=3000", "train.evaluations=1000"]
    common += ["train.num_images=0", "train.max_to_keep=5000", f"train.ddp.timeout={TIMEOUT}"]
    alone = tmp_path / "alone"
    run = Run(
        settings(sample_root, alone, *common, "dataloader.train.batch_size=4"),
        tmp_path / "log",
        ("before step", 4),
    )
    run.wait()

    output = tmp_path / "together"
    words = settings(sample_root, output, *common, "dataloader.train.batch_size=1")
    words += ["--num-processes", "2", "--num-machines", "2", "--dist-url", f"tcp://{ADDRESS}:29500"]
    processes = []
    for rank, name in enumerate(machines):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "SDMatte", "train", CONFIG]
        process = subprocess.Popen(
            [*command, *words, "--machine-rank", str(rank)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
    records = output / "metrics.json"
    while not (records.exists() and evaluations(output)):
        assert processes[0].poll() is None, processes[0].stdout.read()
        time.sleep(0.1)
    ip("-n", machines[1], "link", "set", machines[1], "down")
    cut = time.monotonic()
    logs = [process.communicate(timeout=TIMEOUT + 60)[0] for process in processes]
    assert time.monotonic() - cut < TIMEOUT + 40  # 30 s of which torch gives processes to end
    assert [process.returncode for process in processes] == [2, 2]
    for log in logs:  # after gloo's timeout, torch may abort the process rather than raise
        assert re.search(r"^error: Process \d of 4 (lost the others|was killed)", log, re.M), log

    one, four = moves(alone), moves(output)
    moved = max(value.abs().max() for value in one.values()).item()
    assert moved > 1e-3
    torch.testing.assert_close(four, one, rtol=1e-3, atol=1e-3 * moved)
    assert evaluations(output) == pytest.approx(evaluations(alone), rel=1e-3)
