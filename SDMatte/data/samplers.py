"""Samplers: deterministic, resumable, and the same for any number of processes."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from SDMatte.data.listing import Entry
from SDMatte.errors import ConfigError, DataError


@dataclass(frozen=True)
class Mix:
    """A weighted mix of training sets.

    An epoch is as long as all sets together, so that the schedule does not depend on the weights;
    a weight only determines a set's fraction of the epoch.

    Raises:
        ConfigError: A weight is so small that its set would get no sample.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:  # noqa: D105
        for name, quota in zip(self.names, self.quotas(), strict=True):
            if quota == 0:
                raise ConfigError(
                    f"The weight of {name} is too small: it would get none of the "
                    f"{sum(self.sizes)} samples of an epoch."
                )

    @classmethod
    def of(cls, sets: Sequence[tuple[Entry, int]]) -> "Mix | None":
        """Return the mix of sets, given with their sizes; None if no set has a weight.

        Raises:
            ConfigError: Only some sets have a weight, or a weight is too small.
        """
        lacking = [entry.name for entry, _ in sets if entry.weight is None]
        if len(lacking) == len(sets):
            return None
        if lacking:
            raise ConfigError(
                f"Either all training sets have a weight or none; {lacking[0]} has none."
            )
        names, weights = zip(*((entry.name, entry.weight) for entry, _ in sets), strict=True)
        return cls(names, tuple(size for _, size in sets), weights)

    def quotas(self) -> tuple[int, ...]:
        """Return the number of samples per set in an epoch, rounded by largest remainders."""
        exact = np.array(self.weights, np.float64) / sum(self.weights) * sum(self.sizes)
        quotas = np.floor(exact).astype(int)
        missing = sum(self.sizes) - int(quotas.sum())
        quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
        return tuple(quotas.tolist())

    def describe(self) -> str:
        """Return a sentence with the length and the composition of an epoch."""
        parts = (
            f"{quota} of {name} (each sample {quota / size:.3g} times)"
            for name, quota, size in zip(self.names, self.quotas(), self.sizes, strict=True)
        )
        return f"An epoch has {sum(self.sizes)} samples: {', '.join(parts)}."


class EpochSampler(Sampler[tuple[int, int]]):
    """An endless stream of (visit, index) that is the same for any number of processes.

    Each epoch is a permutation that depends only on seed and epoch. Rank r takes the positions r,
    r + world_size, ... of the concatenated epochs, so every sample is drawn once per epoch over
    all ranks, without padding. To resume after n samples of a rank, pass ``start=n``. The visit
    counts how often a sample was drawn before and seeds its random choices; here it is the epoch.
    """

    def __init__(
        self, length: int, seed: int = 0, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        """Start the stream of a rank after ``start`` of its samples; an epoch has ``length``.

        Raises:
            DataError: There are no samples.
        """
        if length < 1:
            raise DataError("There are no training samples.")
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch: int ``[length, 2]``, rows of visit and index."""
        indices = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return np.stack([np.full_like(indices, epoch), indices], axis=1)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (visit, index) endlessly."""
        position = self.rank + self.start * self.world_size
        while True:
            epoch, offset = divmod(position, self.length)
            for visit, index in self.order(epoch)[offset :: self.world_size].tolist():
                yield visit, index
                position += self.world_size


class WeightedSampler(EpochSampler):
    """The stream of a weighted mix: each set has its quota in every epoch.

    Each set has its own stream of concatenated permutations, and each epoch takes its next
    ``quota`` samples. The samples of a set are therefore used evenly: their counts never differ
    by more than one. The order depends only on seed and epoch, as in `EpochSampler`.
    """

    def __init__(
        self, mix: Mix, seed: int = 0, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        """Initialize the stream; see `EpochSampler`."""
        super().__init__(sum(mix.sizes), seed, rank, world_size, start)
        self.mix = mix

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch: int ``[length, 2]``, rows of visit and index."""
        rows, first = [], 0
        for part, (size, quota) in enumerate(zip(self.mix.sizes, self.mix.quotas(), strict=True)):
            positions = np.arange(epoch * quota, (epoch + 1) * quota)
            visits, offsets = positions // size, positions % size
            for visit in range(visits[0], visits[-1] + 1):
                shuffled = np.random.default_rng((self.seed, 1 + part, visit)).permutation(size)
                chosen = shuffled[offsets[visits == visit]]
                rows.append(np.stack([np.full_like(chosen, visit), first + chosen], axis=1))
            first += size
        return np.random.default_rng((self.seed, 0, epoch)).permutation(np.concatenate(rows))


def shard_batches(
    length: int,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    wanted: Collection[int] | None = None,
) -> list[list[int]]:
    """Return a rank's contiguous share of a test set's batches: those with wanted samples, or all.

    A sample is always in the same batch, whatever the number of processes and of samples left to
    predict, because the last digits of a prediction depend on the rest of its batch.
    """
    batches = list(BatchSampler(range(length), batch_size, drop_last=False))
    if wanted is not None:
        chosen = set(wanted)
        batches = [batch for batch in batches if not chosen.isdisjoint(batch)]
    number = len(batches)
    return batches[number * rank // world_size : number * (rank + 1) // world_size]
