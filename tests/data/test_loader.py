"""Loaders: batches, resuming, errors of workers, timeouts."""

import multiprocessing
import os
import signal
import subprocess
import time
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from data_trees import PAIR, SETTINGS, write_aim, write_composition, write_pairs

from SDMatte.data import MattingDataset, build_test_loader, build_train_loader, collate
from SDMatte.errors import ConfigError, DataError


def take(sampler, count):
    return list(islice(sampler, count))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_composition(folder)
    write_aim(folder, [f"o_{i}" for i in range(5)])
    return folder


def train_set(root):
    return MattingDataset("Composition-1K", root=root, size=32, settings=SETTINGS)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key]
        assert same, key


def test_collate(root):
    dataset = train_set(root)
    batch = collate([dataset[0], dataset[3]])
    assert batch["image"].shape == (2, 3, 32, 32) and batch["alpha"].shape == (2, 1, 32, 32)
    assert batch["point_coords"].shape == (2, 20) and batch["is_trans"].shape == (2,)
    assert batch["hw"].tolist() == [[40, 120]] * 2
    assert batch["image_name"] == ["x.png", "y.png"] and batch["caption"] == ["", ""]


def test_batches_do_not_depend_on_the_workers_and_resume(root):
    dataset = train_set(root)
    batches = take(build_train_loader(dataset, 2, num_workers=0, seed=4), 8)
    for workers in (1, 2):
        loader = build_train_loader(dataset, 2, num_workers=workers, seed=4)
        for first, second in zip(batches, loader, strict=False):
            assert_same(first, second)
    resumed = build_train_loader(dataset, 2, num_workers=2, seed=4)
    resumed.sampler.start = 5 * 2
    for first, second in zip(batches[5:], resumed, strict=False):
        assert_same(first, second)


def test_ranks_share_a_batch(root):
    dataset = train_set(root)
    whole = take(build_train_loader(dataset, 4, num_workers=0), 3)
    halves = [
        take(build_train_loader(dataset, 2, num_workers=0, rank=r, world_size=2), 3) for r in (0, 1)
    ]
    for step in range(3):
        assert whole[step]["alpha_path"][::2] == halves[0][step]["alpha_path"]
        assert torch.equal(whole[step]["image"][1::2], halves[1][step]["image"])


def test_test_loader(root):
    dataset = MattingDataset("AIM-500", root=root, size=32, training=False, settings=SETTINGS)
    loader = build_test_loader(dataset, 2, num_workers=2)
    batches = list(loader)
    assert len(loader) == 3 and [len(b["image_name"]) for b in batches] == [2, 2, 1]
    assert [n for b in batches for n in b["image_name"]] == [f"o_{i}.png" for i in range(5)]
    assert list(loader)[0]["image_name"] == batches[0]["image_name"]  # again
    names = []
    for rank in range(2):
        shard = build_test_loader(dataset, 1, num_workers=0, rank=rank, world_size=2)
        names += [b["image_name"][0] for b in shard]
    assert names == [f"o_{i}.png" for i in range(5)]
    assert not list(build_test_loader(dataset, 1, num_workers=0, rank=0, world_size=9))


def test_rank_of_torch_distributed(root, tmp_path):
    dataset = MattingDataset("AIM-500", root=root, size=32, training=False, settings=SETTINGS)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert len(build_test_loader(dataset, num_workers=0)) == 5
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_are_one_sentence(tmp_path, workers):
    write_pairs(tmp_path, ["0", "1"])
    (tmp_path / "alpha/1.png").write_bytes(b"")
    dataset = MattingDataset(PAIR, root=tmp_path, size=16, training=False)
    with pytest.raises(DataError) as caught:
        list(build_test_loader(dataset, num_workers=workers))
    assert str(caught.value) == f"Cannot read {tmp_path / 'alpha/1.png'}: the file is empty."


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_samples_that_do_not_fit_into_memory(tmp_path, workers, training):
    write_pairs(tmp_path, ["0"])
    dataset = MattingDataset(PAIR, root=tmp_path, size=2**24, training=training)
    part, build = ("train", build_train_loader) if training else ("test", build_test_loader)
    with pytest.raises(ConfigError) as caught:
        next(iter(build(dataset, num_workers=workers)))
    assert str(caught.value) == (
        f"Out of memory while reading {tmp_path / 'image/0.jpg'}: lower "
        f"dataloader.{part}.dataset.size, which is {2**24}."
    )


def test_the_limit_of_bad_samples_holds_over_all_workers(tmp_path):
    write_pairs(tmp_path, [f"{i:02d}" for i in range(12)])
    for i in range(0, 12, 2):
        (tmp_path / f"alpha/{i:02d}.png").write_bytes(b"")

    def names(limit):
        dataset = MattingDataset(PAIR, root=tmp_path, size=16, max_bad_samples=limit)
        loader = build_train_loader(dataset, 1, num_workers=2)
        return [batch["image_name"][0] for batch in islice(loader, 24)]

    assert set(names(6)) == {f"{i:02d}.png" for i in range(1, 12, 2)}
    with pytest.raises(DataError, match="^6 training samples cannot be read, 5 are allowed"):
        names(5)


def test_a_named_pipe_is_refused(tmp_path):
    write_pairs(tmp_path, ["0", "1"])
    (tmp_path / "alpha/1.png").unlink()
    os.mkfifo(tmp_path / "alpha/1.png")
    training = MattingDataset(PAIR, root=tmp_path, size=16)
    for batch in islice(build_train_loader(training, 1, num_workers=1), 3):
        assert batch["image_name"] == ["0.png"]
    test = MattingDataset(PAIR, root=tmp_path, size=16, training=False)
    with pytest.raises(DataError, match=r"1\.png: it is not a file"):
        list(build_test_loader(test, num_workers=1, timeout=60))


class HangingSet(MattingDataset):
    """A disk that never answers."""

    def _make(self, sample, rng):
        time.sleep(600)


class DeadlySet(MattingDataset):
    """The operating system kills the worker that reads the second image."""

    def _make(self, sample, rng):
        if sample.alpha.endswith("1.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._make(sample, rng)


class SignaledSet(MattingDataset):
    """A scheduler signals every process; captions report the worker's threads."""

    def _make(self, sample, rng):
        for name in ("INT", "TERM", "USR1"):
            subprocess.run(["kill", f"-{name}", str(os.getpid())], check=True)
        threads = f"{cv2.getNumThreads()} {torch.get_num_threads()}"
        return super()._make(sample, rng) | {"caption": threads}


def test_workers_keep_to_one_core_and_leave_signals_to_the_trainer(tmp_path):
    write_pairs(tmp_path, ["0"])
    dataset = SignaledSet(PAIR, root=tmp_path, size=16, training=False)
    assert [b["caption"] for b in build_test_loader(dataset, num_workers=1)] == [["1 1"]]


@pytest.mark.parametrize(
    ("kind", "timeout", "reason"),
    [
        (HangingSet, 1, r"loader of mine gave no batch for 1 s \(timeout\)"),
        (DeadlySet, 60, "worker was killed, most likely because memory ran out"),
    ],
)
def test_workers_that_hang_or_die(tmp_path, kind, timeout, reason):
    write_pairs(tmp_path, ["0", "1"])
    dataset = kind({**PAIR, "name": "mine"}, root=tmp_path, size=16, training=False)
    with pytest.raises(DataError, match=reason) as caught:
        list(build_test_loader(dataset, num_workers=1, timeout=timeout))
    assert "\n" not in str(caught.value)
    for worker in multiprocessing.active_children():
        worker.join(30)  # killed, but perhaps not yet gone
    assert not multiprocessing.active_children()


def test_images_of_several_shapes_cannot_be_batched(tmp_path):
    write_pairs(tmp_path / "a", ["0"], shape=(40, 60))
    write_pairs(tmp_path / "b", ["1"], shape=(60, 40))
    pairs = [{"image": f"{n}/image", "alpha": f"{n}/alpha", "name": n} for n in "ab"]
    dataset = MattingDataset(
        pairs, root=tmp_path, size=64, training=False,
        settings={**SETTINGS, "keep_aspect": True, "size_multiple": 16},
    )  # fmt: skip
    with pytest.raises(DataError, match="80x48 and 48x80 pixels.* batch_size=1") as caught:
        list(build_test_loader(dataset, 2, num_workers=1))
    assert "\n" not in str(caught.value)
    shapes = [b["image"].shape[2:] for b in build_test_loader(dataset, 1, num_workers=0)]
    assert shapes == [(48, 80), (80, 48)]


def test_spawned_workers(root):
    dataset = train_set(root)
    loader = build_train_loader(dataset, 2, num_workers=1)
    loader.multiprocessing_context = "spawn"
    assert_same(next(iter(loader)), next(iter(build_train_loader(dataset, 2, num_workers=0))))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"batch_size": "2"}, "batch_size must be an integer; got '2'"),
        ({"num_workers": -1}, "num_workers must be at least 0; got -1"),
        ({"num_workers": 1.5}, "num_workers must be an integer"),
        ({"timeout": -1}, "timeout must be at least 0"),
        ({"timeout": "long"}, "timeout must be a number; got 'long'"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"seed": 0.5}, "seed must be an integer"),
    ],
)
def test_invalid_options(root, options, reason):
    with pytest.raises(ConfigError, match=reason):
        build_train_loader(train_set(root), **{"num_workers": 0} | options)


def test_no_global_random_state_is_touched(root):
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    next(iter(build_train_loader(train_set(root), 2, num_workers=0)))
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
