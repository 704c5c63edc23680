"""Samplers: the order of samples, weighted mixes, ranks and restarts."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from data_trees import SETTINGS, write_composition, write_pairs

from SDMatte.data import EpochSampler, MattingDataset, build_train_loader
from SDMatte.data.listing import Entry
from SDMatte.data.samplers import Mix, WeightedSampler, shard_batches
from SDMatte.errors import ConfigError, DataError

MIX = Mix(("a", "b", "c"), (10, 3, 7), (1, 2, 0.5))  # 20 samples: quotas 6, 11, 3
PARTS = np.repeat([0, 1, 2], MIX.sizes)


def take(sampler, count):
    return list(islice(sampler, count))


def epochs(length):
    return lambda *args: EpochSampler(length, *args)


def weighted(*args):
    return WeightedSampler(MIX, *args)


# ------------------------------------------------------------------ either sampler


@pytest.mark.parametrize("sampler", [epochs(7), weighted])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_global_order_does_not_depend_on_the_world(sampler, world_size):
    streams = [take(sampler(3, r, world_size), 30) for r in range(world_size)]
    merged = [item for step in zip(*streams, strict=True) for item in step]
    assert merged == take(sampler(3), 30 * world_size)


@pytest.mark.parametrize("sampler", [epochs(7), weighted])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (2, 3), (8, 9)])
@pytest.mark.parametrize("start", [0, 1, 4, 7, 20, 33])
def test_start_continues_a_run(sampler, rank, world_size, start):
    whole = take(sampler(1, rank, world_size), 60)
    assert take(sampler(1, rank, world_size, start), 60 - start) == whole[start:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 11])
def test_every_sample_once_per_epoch_over_all_ranks(world_size):
    length, number = 10, world_size  # so many epochs divide evenly among the ranks
    streams = [
        take(EpochSampler(length, 3, rank, world_size), length * number // world_size)
        for rank in range(world_size)
    ]
    counts = Counter(item for stream in streams for item in stream)
    assert counts == {(epoch, i): 1 for epoch in range(number) for i in range(length)}


def test_order_depends_on_seed_and_epoch():
    stream = take(EpochSampler(50, 0), 100)
    first, second = stream[:50], stream[50:]
    assert [e for e, _ in first] == [0] * 50 and [e for e, _ in second] == [1] * 50
    assert [i for _, i in first] != [i for _, i in second]
    assert take(EpochSampler(50, 0), 100) == stream != take(EpochSampler(50, 1), 100)


def test_invalid_arguments():
    with pytest.raises(DataError, match="no training samples"):
        EpochSampler(0)


@pytest.mark.parametrize("length", [0, 1, 5, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_shards_are_contiguous_and_complete(length, world_size, batch_size):
    def sharded(wanted=None):
        shards = [
            shard_batches(length, batch_size, rank, world_size, wanted)
            for rank in range(world_size)
        ]
        sizes = [len(shard) for shard in shards]
        assert max(sizes) - min(sizes) <= 1
        return [batch for shard in shards for batch in shard]

    batches = shard_batches(length, batch_size)
    assert sharded() == batches
    assert [i for batch in batches for i in batch] == list(range(length))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert sharded([]) == []
    if length > 4:
        assert sharded([1, 4]) == [b for b in batches if 1 in b or 4 in b]


# ----------------------------------------------------------------------- quotas


def test_quotas_follow_the_weights_and_add_up():
    assert MIX.quotas() == (6, 11, 3)
    assert Mix(("a", "b"), (90, 10), (1, 1)).quotas() == (50, 50)
    assert Mix(("a", "b"), (90, 10), (3, 1.0)).quotas() == (75, 25)
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = tuple(rng.integers(50, 200, 4).tolist())
        weights = tuple(rng.uniform(0.5, 5, 4).tolist())
        quotas = np.array(Mix(tuple("abcd"), sizes, weights).quotas())
        assert quotas.sum() == sum(sizes)
        exact = np.array(weights) / sum(weights) * sum(sizes)
        assert (np.abs(quotas - exact) < 1).all()


def test_a_weight_that_gives_no_samples_is_refused():
    with pytest.raises(ConfigError, match="The weight of b is too small"):
        Mix(("a", "b"), (5, 5), (1000, 1))


# ---------------------------------------------------------------- weighted sampler


def test_each_epoch_has_the_quotas():
    stream = take(WeightedSampler(MIX, 3), 20 * 30)
    for epoch in range(30):
        indices = [index for _, index in stream[20 * epoch : 20 * (epoch + 1)]]
        assert Counter(PARTS[indices].tolist()) == {0: 6, 1: 11, 2: 3}


def test_samples_of_a_set_are_used_evenly():
    counts = np.zeros(20, int)
    sampler = WeightedSampler(MIX, 3)
    for epoch in range(40):
        np.add.at(counts, sampler.order(epoch)[:, 1], 1)
        for part in range(3):
            own = counts[PARTS == part]
            assert own.max() - own.min() <= 1


def test_no_visit_is_repeated():
    stream = take(WeightedSampler(MIX, 3), 20 * 30)
    assert len(set(stream)) == len(stream)
    for index in range(20):  # visits count from 0
        visits = [visit for visit, i in stream if i == index]
        assert sorted(visits) == list(range(len(visits)))


def test_weighted_order_depends_on_seed_and_epoch():
    first = WeightedSampler(MIX, 0)
    assert (first.order(5) == WeightedSampler(MIX, 0).order(5)).all()
    assert (first.order(5) != first.order(6)).any()
    assert (first.order(5) != WeightedSampler(MIX, 1).order(5)).any()
    # The sets are shuffled together, not concatenated.
    parts = PARTS[first.order(0)[:, 1]]
    assert (np.diff(parts) < 0).any()


# ------------------------------------------------------------- from a config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = write_composition(tmp_path_factory.mktemp("data"))  # 3 foregrounds, 9 composites
    write_pairs(folder / "mine", ["p", "q"])
    return folder


def names(first=1, second=2):
    return [
        {"name": "Composition-1K", "weight": first},
        {"image": "mine/image", "alpha": "mine/alpha", "name": "mine", "weight": second},
    ]


def test_the_loader_mixes_and_resumes(root, caplog):
    caplog.set_level("INFO")
    dataset = MattingDataset(names(9, 2), root=root, size=32, settings=SETTINGS, seed=1)
    assert len(dataset) == 11 and dataset.mix.quotas() == (9, 2)
    dataset = MattingDataset(names(1, 10), root=root, size=32, settings=SETTINGS, seed=1)
    batches = take(build_train_loader(dataset, 11, num_workers=0), 2)
    assert "An epoch has 11 samples: 1 of Composition-1K (each sample 0.111 times)" in caplog.text
    for batch in batches:
        assert Counter(batch["dataset"]) == {"Composition-1K": 1, "mine": 10}
    # A sample that is repeated in an epoch is drawn anew.
    images = [batches[0]["mask"][i] for i, n in enumerate(batches[0]["image_name"]) if n == "p.png"]
    assert len(images) == 5
    assert len({image.numpy().tobytes() for image in images}) > 1
    for rank in (0, 1):
        loader = build_train_loader(dataset, 1, num_workers=0, rank=rank, world_size=2)
        loader.sampler.start = 4
        batch = next(iter(loader))
        assert torch.equal(batch["image"][0], batches[0]["image"][8 + rank])


def test_without_weights_there_is_no_mix(root):
    plain = [{key: value for key, value in item.items() if key != "weight"} for item in names()]
    dataset, mixed = (MattingDataset(n, root=root, size=32) for n in (plain, names()))
    assert dataset.mix is None and len(dataset) == 11
    assert dataset.samples == mixed.samples
    assert Mix.of([(Entry("", name="a"), 3)]) is None


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), "2", True])
def test_a_weight_is_a_positive_number(root, weight):
    with pytest.raises(ConfigError, match=r"mine\.weight must be"):
        MattingDataset(names(1, weight), root=root)


def test_invalid_mixes(root):
    with pytest.raises(ConfigError, match="have a weight or none; Composition-1K has none"):
        MattingDataset([names()[1], "Composition-1K"], root=root)
    with pytest.raises(ConfigError, match="either weights or a limit"):
        MattingDataset(names(), root=root, limit=3)
    with pytest.raises(DataError, match="mine: weight is a setting of training sets only"):
        MattingDataset(names()[1], root=root, training=False)
