"""Sampling over ranks and restarts, loaders, collation."""

import os
import signal
import time
from collections import Counter
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from data_trees import write_aim, write_composition, write_pairs

from SDMatte.data import (
    EpochSampler,
    MattingDataset,
    build_test_loader,
    build_train_loader,
    collate,
)
from SDMatte.data.loader import ShareSampler
from SDMatte.errors import ConfigError, DataError

SETTINGS = {"kernel_sizes": [3, 5], "point_radius": 3}


def take(sampler, count):
    return list(islice(sampler, count))


# --------------------------------------------------------------------- samplers


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 11])
def test_every_sample_once_an_epoch_over_all_ranks(world_size):
    length, epochs = 10, world_size  # as many epochs as make a whole number for each rank
    streams = [
        take(EpochSampler(length, 3, rank, world_size), length * epochs // world_size)
        for rank in range(world_size)
    ]
    counts = Counter(item for stream in streams for item in stream)
    assert counts == {(epoch, i): 1 for epoch in range(epochs) for i in range(length)}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_global_order_does_not_depend_on_the_world(world_size):
    streams = [take(EpochSampler(7, 3, r, world_size), 20) for r in range(world_size)]
    merged = [item for step in zip(*streams, strict=True) for item in step]
    assert merged == take(EpochSampler(7, 3), 20 * world_size)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (2, 3), (8, 9)])
@pytest.mark.parametrize("start", [0, 1, 4, 7, 29])
def test_start_is_the_tail_of_a_whole_run(rank, world_size, start):
    whole = take(EpochSampler(7, 1, rank, world_size), 60)
    assert take(EpochSampler(7, 1, rank, world_size, start), 60 - start) == whole[start:]


def test_order_follows_from_seed_and_epoch():
    stream = take(EpochSampler(50, 0), 100)
    first, second = stream[:50], stream[50:]
    assert [e for e, _ in first] == [0] * 50 and [e for e, _ in second] == [1] * 50
    assert [i for _, i in first] != [i for _, i in second]
    assert take(EpochSampler(50, 0), 100) == stream != take(EpochSampler(50, 1), 100)


def test_sampler_refuses():
    with pytest.raises(DataError, match="no training samples"):
        EpochSampler(0)
    for arguments in ({"rank": 2, "world_size": 2}, {"rank": -1}, {"start": -1}):
        with pytest.raises(ConfigError):
            EpochSampler(5, **arguments)


@pytest.mark.parametrize("length", [0, 1, 5, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_shares_are_contiguous_and_complete(length, world_size, batch_size):
    def shared(wanted=None):
        shares = [
            ShareSampler(length, batch_size, rank, world_size, wanted) for rank in range(world_size)
        ]
        sizes = [len(share) for share in shares]
        assert sizes == [len(list(share)) for share in shares] and max(sizes) - min(sizes) <= 1
        return [batch for share in shares for batch in share]

    batches = list(ShareSampler(length, batch_size))
    assert shared() == batches  # the same ones, whoever has them
    assert [i for batch in batches for i in batch] == list(range(length))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert shared([]) == []
    if length > 4:
        assert shared([1, 4]) == [b for b in batches if 1 in b or 4 in b]


# ---------------------------------------------------------------------- loaders


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
    assert list(loader)[0]["image_name"] == batches[0]["image_name"]  # a second round
    names = []
    for rank in range(2):
        share = list(build_test_loader(dataset, 1, num_workers=0, rank=rank, world_size=2))
        names += [b["image_name"][0] for b in share]
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
def test_errors_arrive_as_one_sentence(tmp_path, workers):
    write_pairs(tmp_path, ["0", "1"])
    (tmp_path / "alpha/1.png").write_bytes(b"")
    dataset = MattingDataset({"image": "image", "alpha": "alpha"}, root=tmp_path, size=16,
                             training=False)  # fmt: skip
    with pytest.raises(DataError) as caught:
        list(build_test_loader(dataset, num_workers=workers))
    assert str(caught.value) == f"Cannot read {tmp_path / 'alpha/1.png'}: the file is empty."


def test_the_limit_of_bad_samples_holds_over_all_workers(tmp_path):
    write_pairs(tmp_path, [f"{i:02d}" for i in range(12)])
    for i in range(0, 12, 2):
        (tmp_path / f"alpha/{i:02d}.png").write_bytes(b"")
    pair = {"image": "image", "alpha": "alpha"}

    def names(limit):
        dataset = MattingDataset(pair, root=tmp_path, size=16, max_bad_samples=limit)
        loader = build_train_loader(dataset, 1, num_workers=2)
        return [batch["image_name"][0] for batch in islice(loader, 24)]

    assert set(names(6)) == {f"{i:02d}.png" for i in range(1, 12, 2)}
    with pytest.raises(DataError, match="^6 training samples cannot be read, 5 are allowed"):
        names(5)


def test_a_named_pipe_is_no_file_to_wait_for(tmp_path):
    write_pairs(tmp_path, ["0", "1"])
    (tmp_path / "alpha/1.png").unlink()
    os.mkfifo(tmp_path / "alpha/1.png")
    pair = {"image": "image", "alpha": "alpha"}
    training = MattingDataset(pair, root=tmp_path, size=16)
    for batch in islice(build_train_loader(training, 1, num_workers=1), 3):
        assert batch["image_name"] == ["0.png"]
    test = MattingDataset(pair, root=tmp_path, size=16, training=False)
    with pytest.raises(DataError, match=r"1\.png: it is not a file"):
        list(build_test_loader(test, num_workers=1, timeout=60))


class HangingSet(MattingDataset):
    """A disk that takes much longer than the loader waits."""

    def _draw(self, sample, rng):
        time.sleep(4)
        return super()._draw(sample, rng)


class DeadlySet(MattingDataset):
    """The operating system ends whoever reads the second picture."""

    def _draw(self, sample, rng):
        if sample.alpha.endswith("1.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._draw(sample, rng)


class TellingSet(MattingDataset):
    """Its captions say how the worker is set up."""

    def _draw(self, sample, rng):
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        ignored = all(signal.getsignal(number) is signal.SIG_IGN for number in numbers)
        told = f"{cv2.getNumThreads()} {torch.get_num_threads()} {ignored}"
        return super()._draw(sample, rng) | {"caption": told}


def test_workers_keep_to_one_core_and_leave_signals_to_the_trainer(tmp_path):
    write_pairs(tmp_path, ["0"])
    dataset = TellingSet({"image": "image", "alpha": "alpha"}, root=tmp_path, size=16)
    batch = next(iter(build_train_loader(dataset, num_workers=1)))
    assert batch["caption"] == ["1 1 True"]


@pytest.mark.parametrize(
    ("kind", "timeout", "reason"),
    [
        (HangingSet, 1, r"no batch for 1 s \(timeout\)"),
        (DeadlySet, 60, r"worker .* was killed, while it made samples of .*alpha/1\.png"),
    ],
)
def test_workers_that_hang_or_die(tmp_path, kind, timeout, reason):
    write_pairs(tmp_path, ["0", "1"])
    dataset = kind({"image": "image", "alpha": "alpha"}, root=tmp_path, size=16, training=False)
    with pytest.raises(DataError, match=reason) as caught:
        list(build_test_loader(dataset, num_workers=1, timeout=timeout))
    assert "\n" not in str(caught.value)


def test_pictures_of_several_shapes_cannot_form_a_batch(tmp_path):
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
        ({"batch_size": 0}, "batch_size takes whole numbers of at least 1, not 0"),
        ({"batch_size": "2"}, "batch_size takes whole numbers of at least 1, not '2'"),
        ({"num_workers": -1}, "num_workers takes whole numbers of at least 0, not -1"),
        ({"num_workers": 1.5}, "num_workers takes whole numbers"),
        ({"timeout": -1}, "timeout must be at least 0"),
        ({"timeout": "long"}, "timeout must be at least 0 seconds, not 'long'"),
        ({"pin_memory": "x"}, "pin_memory must be True or False, not 'x'"),
        ({"seed": -1}, "seed takes whole numbers of at least 0, not -1"),
        ({"seed": 0.5}, "seed takes whole numbers"),
    ],
)
def test_loader_refuses(root, options, reason):
    with pytest.raises(ConfigError, match=reason):
        build_train_loader(train_set(root), **{"num_workers": 0} | options)


def test_no_global_random_state_is_touched(root):
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    next(iter(build_train_loader(train_set(root), 2, num_workers=0)))
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
