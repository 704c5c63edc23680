"""Batches for training and test: samplers that any number of processes share, and loaders."""

import logging
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler

from SDMatte.data.dataset import MattingDataset
from SDMatte.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class EpochSampler(Sampler[tuple[int, int]]):
    """An endless stream of (epoch, index), the same for every number of processes.

    Each epoch is a permutation that follows from seed and epoch alone; the epochs stand one
    behind the other, and rank r takes the positions r, r + world_size, ... of that stream. So
    every sample comes once an epoch over all ranks, nothing is repeated to fill up, and after
    n samples a rank stands where ``start=n`` begins.
    """

    def __init__(
        self, length: int, seed: int = 0, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        """Plans the stream.

        Args:
            length: Samples in an epoch.
            seed: Seed of the order.
            rank: This process.
            world_size: The number of processes.
            start: Samples that this rank has had already.

        Raises:
            DataError: There are no samples.
            ConfigError: The rank or the start cannot be.
        """
        if length < 1:
            raise DataError("There are no training samples.")
        if not 0 <= rank < world_size or start < 0:
            raise ConfigError(f"Rank {rank} of {world_size} from sample {start} cannot be.")
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch, int ``[length]``."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields (epoch, index) without end."""
        position = self.rank + self.start * self.world_size
        while True:
            epoch, offset = divmod(position, self.length)
            order = self.order(epoch)
            for index in order[offset :: self.world_size].tolist():
                yield epoch, index
                position += self.world_size


class ShareSampler(Sampler[int]):
    """One rank's contiguous share of a test set; all shares together hold each sample once."""

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        """Plans the share of ``rank``."""
        self._range = range(length * rank // world_size, length * (rank + 1) // world_size)

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of the share, in order."""
        return iter(self._range)

    def __len__(self) -> int:
        """The number of samples in the share."""
        return len(self._range)


class MattingLoader(DataLoader):
    """A DataLoader whose workers' data errors arrive as the sentence that they are."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields batches.

        Raises:
            DataError: As raised by the data set, without the worker's stack trace.
        """
        try:
            yield from super().__iter__()
        except DataError as error:
            # torch wraps what a worker raises into a message that holds the whole trace.
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch: tensors are stacked, strings become a list of B."""
    return {
        key: torch.stack([sample[key] for sample in samples])
        if isinstance(value, torch.Tensor)
        else [sample[key] for sample in samples]
        for key, value in samples[0].items()
    }


def build_train_loader(
    dataset: MattingDataset,
    batch_size: int = 1,
    num_workers: int = 4,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    start_iteration: int = 0,
    pin_memory: bool = False,
) -> MattingLoader:
    """Makes the endless loader of training batches.

    Args:
        dataset: The samples.
        batch_size: Samples a batch, of this process.
        num_workers: Processes that prepare batches; 0 prepares them in this one.
        seed: Seed of the order.
        rank: This process; None asks torch.distributed.
        world_size: The number of processes; None asks torch.distributed.
        start_iteration: Batches that this rank has had already, to go on from there.
        pin_memory: Whether batches lie in page-locked memory.
    """
    rank, world_size = _place(rank, world_size)
    start = start_iteration * batch_size
    sampler = EpochSampler(len(dataset), seed, rank, world_size, start)
    return MattingLoader(
        dataset, sampler=sampler, drop_last=True, **_options(batch_size, num_workers, pin_memory)
    )


def build_test_loader(
    dataset: MattingDataset,
    batch_size: int = 1,
    num_workers: int = 4,
    rank: int | None = None,
    world_size: int | None = None,
    pin_memory: bool = False,
) -> MattingLoader:
    """Makes the loader of this rank's contiguous share of a test set.

    Args:
        dataset: The samples.
        batch_size: Samples a batch; the last one may be smaller.
        num_workers: Processes that prepare batches; 0 prepares them in this one.
        rank: This process; None asks torch.distributed.
        world_size: The number of processes; None asks torch.distributed.
        pin_memory: Whether batches lie in page-locked memory.
    """
    sampler = ShareSampler(len(dataset), *_place(rank, world_size))
    return MattingLoader(dataset, sampler=sampler, **_options(batch_size, num_workers, pin_memory))


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Fills in rank and world size from torch.distributed, where it runs."""
    running = dist.is_available() and dist.is_initialized()
    if rank is None:
        rank = dist.get_rank() if running else 0
    if world_size is None:
        world_size = dist.get_world_size() if running else 1
    return rank, world_size


def _options(batch_size: int, num_workers: int, pin_memory: bool) -> dict[str, Any]:
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            f"batch_size must be at least 1 and num_workers at least 0, not {batch_size} and "
            f"{num_workers}."
        )
    return {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        # Without one of its own, a loader draws from torch's global generator when it starts.
        "generator": torch.Generator(),
        "worker_init_fn": _start_worker,
    }


def _start_worker(worker: int) -> None:
    """Keeps a worker to one core; the workers are the parallelism."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
