"""Weighted mixes: the shares of an epoch, evenly used samples, ranks and restarts."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from data_trees import write_composition, write_pairs

from SDMatte.data import MattingDataset, build_train_loader
from SDMatte.data.loader import WeightedSampler
from SDMatte.data.mix import Mix, list_mix
from SDMatte.errors import ConfigError, DataError

MIX = Mix(("a", "b", "c"), (10, 3, 7), (1, 2, 0.5))  # 20 samples: quotas 6, 11, 3
PARTS = np.repeat([0, 1, 2], MIX.sizes)


def take(sampler, count):
    return list(islice(sampler, count))


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


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), "2", True])
def test_a_weight_is_a_positive_number(weight):
    with pytest.raises(ConfigError, match="The weight of b"):
        Mix(("a", "b"), (5, 5), (1, weight))


def test_a_set_that_would_get_nothing_is_refused():
    with pytest.raises(ConfigError, match="The weight of b is too small"):
        Mix(("a", "b"), (5, 5), (1000, 1))


# ---------------------------------------------------------------------- sampler


def test_each_epoch_has_the_quotas():
    stream = take(WeightedSampler(MIX, 3), 20 * 30)
    for epoch in range(30):
        indices = [index for _, index in stream[20 * epoch : 20 * (epoch + 1)]]
        assert Counter(PARTS[indices].tolist()) == {0: 6, 1: 11, 2: 3}


def test_all_samples_of_a_set_are_used_evenly_at_the_end_of_every_epoch():
    counts = np.zeros(20, int)
    sampler = WeightedSampler(MIX, 3)
    for epoch in range(40):
        np.add.at(counts, sampler.order(epoch)[:, 1], 1)
        for part in range(3):
            own = counts[PARTS == part]
            assert own.max() - own.min() <= 1


def test_no_visit_of_a_sample_comes_twice():
    stream = take(WeightedSampler(MIX, 3), 20 * 30)
    assert len(set(stream)) == len(stream)
    for index in range(20):  # the visits count on from 0, in the order of the epochs
        visits = [visit for visit, i in stream if i == index]
        assert sorted(visits) == list(range(len(visits)))


def test_order_follows_from_seed_and_epoch():
    first = WeightedSampler(MIX, 0)
    assert (first.order(5) == WeightedSampler(MIX, 0).order(5)).all()
    assert (first.order(5) != first.order(6)).any()
    assert (first.order(5) != WeightedSampler(MIX, 1).order(5)).any()
    # The sets are shuffled among each other, not one behind the other.
    parts = PARTS[first.order(0)[:, 1]]
    assert (np.diff(parts) < 0).any()


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_global_order_does_not_depend_on_the_world(world_size):
    streams = [take(WeightedSampler(MIX, 3, r, world_size), 30) for r in range(world_size)]
    merged = [item for step in zip(*streams, strict=True) for item in step]
    assert merged == take(WeightedSampler(MIX, 3), 30 * world_size)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (8, 9)])
@pytest.mark.parametrize("start", [1, 19, 20, 33])
def test_start_is_the_tail_of_a_whole_run(rank, world_size, start):
    whole = take(WeightedSampler(MIX, 1, rank, world_size), 60)
    assert take(WeightedSampler(MIX, 1, rank, world_size, start), 60 - start) == whole[start:]


# ------------------------------------------------------------- from the config on


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
    knobs = {"kernel_sizes": [3, 5], "point_radius": 3}
    dataset = MattingDataset(names(9, 2), root=root, size=32, settings=knobs, seed=1)
    assert len(dataset) == 11 and dataset.mix.quotas() == (9, 2)
    dataset = MattingDataset(names(1, 10), root=root, size=32, settings=knobs, seed=1)
    batches = take(build_train_loader(dataset, 11, num_workers=0), 2)
    assert "An epoch has 11 samples: 1 of Composition-1K (each sample 0.111 times)" in caplog.text
    for batch in batches:
        assert Counter(batch["dataset"]) == {"Composition-1K": 1, "mine": 10}
    # A sample that comes again in an epoch is drawn anew.
    images = [batches[0]["mask"][i] for i, n in enumerate(batches[0]["image_name"]) if n == "p.png"]
    assert len(images) == 5
    assert len({image.numpy().tobytes() for image in images}) > 1
    for rank in (0, 1):
        loader = build_train_loader(dataset, 1, num_workers=0, rank=rank, world_size=2)
        loader.sampler.start = 4
        batch = next(iter(loader))
        assert torch.equal(batch["image"][0], batches[0]["image"][8 + rank])


def test_without_weights_nothing_changes(root):
    plain = [{key: value for key, value in item.items() if key != "weight"} for item in names()]
    samples, mix = list_mix(plain, root)
    assert mix is None and len(samples) == 11
    assert samples == list_mix(names(), root)[0]
    assert list_mix("Composition-1K", root)[1] is None


def test_mistakes_are_named(root):
    mixed = [names()[0], "Composition-1K"]
    with pytest.raises(ConfigError, match="a weight, or none: Composition-1K has none"):
        list_mix(mixed, root)
    with pytest.raises(ConfigError, match="The weight of mine is 0"):
        list_mix(names(1, 0), root)
    with pytest.raises(ConfigError, match="either weights or a limit"):
        MattingDataset(names(), root=root, limit=3)
    with pytest.raises(DataError, match="unknown weight"):
        MattingDataset(names()[1], root=root, training=False)
