"""Batches for training and test: samplers that any number of processes share, and loaders."""

import atexit
import logging
import signal
from collections.abc import Collection, Iterator
from multiprocessing.util import Finalize
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler

from SDMatte.data.dataset import MattingDataset
from SDMatte.data.mix import Mix
from SDMatte.data.settings import check_whole, is_number
from SDMatte.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class EpochSampler(Sampler[tuple[int, int]]):
    """An endless stream of (visit, index), the same for every number of processes.

    Each epoch is a permutation that follows from seed and epoch alone; the epochs stand one
    behind the other, and rank r takes the positions r, r + world_size, ... of that stream. So
    every sample comes once an epoch over all ranks, nothing is repeated to fill up, and after
    n samples a rank stands where ``start=n`` begins. The visit counts how often a sample came
    before, so that its random choices are new ones each time; here that is the epoch.
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
            ConfigError: The seed, the rank or the start cannot be.
        """
        check_whole("seed", [seed], 0)
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
        """What an epoch consists of: int ``[length, 2]``, rows of visit and index."""
        indices = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return np.stack([np.full_like(indices, epoch), indices], axis=1)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields (visit, index) without end."""
        position = self.rank + self.start * self.world_size
        while True:
            epoch, offset = divmod(position, self.length)
            for visit, index in self.order(epoch)[offset :: self.world_size].tolist():
                yield visit, index
                position += self.world_size


class WeightedSampler(EpochSampler):
    """The stream of a weighted mix: each set has its quota in every epoch.

    Each set has a stream of its own, one permutation of its samples behind the other, and an
    epoch takes the next ``quota`` of it. So at any time no sample of a set has come more than
    once more often than another, however large or small the quota is. All of that follows from
    seed and epoch, as in `EpochSampler`.
    """

    def __init__(
        self, mix: Mix, seed: int = 0, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        """Plans the stream; see `EpochSampler` for what is not the mix."""
        super().__init__(sum(mix.sizes), seed, rank, world_size, start)
        self.mix = mix

    def order(self, epoch: int) -> np.ndarray:
        """What an epoch consists of: int ``[length, 2]``, rows of visit and index."""
        rows, first = [], 0
        for part, (size, quota) in enumerate(zip(self.mix.sizes, self.mix.quotas(), strict=True)):
            places = np.arange(epoch * quota, (epoch + 1) * quota)
            visits, offsets = places // size, places % size
            for visit in range(visits[0], visits[-1] + 1):
                shuffled = np.random.default_rng((self.seed, 1 + part, visit)).permutation(size)
                chosen = shuffled[offsets[visits == visit]]
                rows.append(np.stack([np.full_like(chosen, visit), first + chosen], axis=1))
            first += size
        return np.random.default_rng((self.seed, 0, epoch)).permutation(np.concatenate(rows))


class ShareSampler(Sampler[list[int]]):
    """One rank's contiguous share of a test set's batches; all shares hold each sample once.

    A sample always is in the same batch, however many processes there are and whichever samples
    are left to do: what a network gives depends, in the last digits, on the others in the batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        wanted: Collection[int] | None = None,
    ) -> None:
        """Plans the share of ``rank``: of the batches that hold a wanted sample, or of all."""
        batches = [
            list(range(first, min(first + batch_size, length)))
            for first in range(0, length, batch_size)
        ]
        if wanted is not None:
            chosen = set(wanted)
            batches = [batch for batch in batches if not chosen.isdisjoint(batch)]
        number = len(batches)
        self._batches = batches[number * rank // world_size : number * (rank + 1) // world_size]

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the indices of each batch of the share, in order."""
        return iter(self._batches)

    def __len__(self) -> int:
        """The number of batches in the share."""
        return len(self._batches)


class MattingLoader(DataLoader):
    """A DataLoader whose workers' errors arrive as the sentence that they are."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields batches.

        Raises:
            DataError: As raised by the data set, without the worker's stack trace; or a worker was
                killed, or hangs.
        """
        iterator = super().__iter__()
        # One of the two is called at the end of a process, depending on what has started it; both
        # before torch's own end, after which a loader leaves its workers alone.
        end = Finalize(None, _end_workers, args=(iterator,), exitpriority=10)
        atexit.register(end)
        try:
            yield from iterator
        except DataError as error:
            # torch wraps what a worker raises into a message that holds the whole trace.
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__qualname__}: ")[2].strip()) from None
        except RuntimeError as error:
            reason = _worker_failure(str(error), self.timeout, self.dataset.being_made())
            if reason is None:
                raise
            raise DataError(reason) from None
        finally:
            atexit.unregister(end)
            end()


def _worker_failure(message: str, timeout: float, files: list[str]) -> str | None:
    """Says in a sentence what torch says of a worker; None where it speaks of something else."""
    at = f", while it made samples of {', '.join(files)}" if files else ""
    if "timed out" in message:
        return (
            f"The loader gave no batch for {timeout:g} s (timeout){at}. Can the disk be reached, "
            f"and is it fast enough?"
        )
    if "DataLoader worker" in message:
        return (
            f"A worker of the loader was killed{at}. Most often the memory is short: fewer workers "
            f"(num_workers) or a smaller cache (cache_mb) need less."
        )
    return None


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch: tensors are stacked, strings become a list of B.

    Raises:
        DataError: The pictures have different shapes.
    """
    shapes = sorted({tuple(sample["image"].shape[1:]) for sample in samples})
    if len(shapes) > 1:
        sizes = " and ".join(f"{width}x{height}" for height, width in shapes)
        raise DataError(
            f"Pictures of {sizes} pixels cannot form a batch; a test with keep_aspect needs "
            f"batch_size=1."
        )
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
    pin_memory: bool = False,
    timeout: float = 600,
) -> MattingLoader:
    """Makes the endless loader of training batches.

    Args:
        dataset: The samples; if its sets have weights, they get shares of an epoch.
        batch_size: Samples a batch, of this process.
        num_workers: Processes that prepare batches; 0 prepares them in this one.
        seed: Seed of the order.
        rank: This process; None asks torch.distributed.
        world_size: The number of processes; None asks torch.distributed.
        pin_memory: Whether batches lie in page-locked memory.
        timeout: After so many seconds without a batch the workers count as hanging; 0 waits on.

    Raises:
        ConfigError: A number cannot be.
        DataError: There are no samples.
    """
    options = _options(batch_size, num_workers, pin_memory, timeout)
    rank, world_size = _place(rank, world_size)
    if dataset.mix is None:
        sampler = EpochSampler(len(dataset), seed, rank, world_size)
    else:
        logger.info(dataset.mix.describe())
        sampler = WeightedSampler(dataset.mix, seed, rank, world_size)
    return MattingLoader(dataset, sampler=sampler, drop_last=True, **options)


def build_test_loader(
    dataset: MattingDataset,
    batch_size: int = 1,
    num_workers: int = 4,
    rank: int | None = None,
    world_size: int | None = None,
    pin_memory: bool = False,
    timeout: float = 600,
    wanted: Collection[int] | None = None,
) -> MattingLoader:
    """Makes the loader of this rank's contiguous share of a test set.

    Args:
        dataset: The samples.
        batch_size: Samples a batch; the last one of the set may be smaller.
        num_workers: Processes that prepare batches; 0 prepares them in this one.
        rank: This process; None asks torch.distributed.
        world_size: The number of processes; None asks torch.distributed.
        pin_memory: Whether batches lie in page-locked memory.
        timeout: After so many seconds without a batch the workers count as hanging; 0 waits on.
        wanted: Indices of the samples that are to come; the others of their batches come, too.
            None: all.

    Raises:
        ConfigError: A number cannot be.
    """
    options = _options(batch_size, num_workers, pin_memory, timeout)
    batch_size = options.pop("batch_size")
    batches = ShareSampler(len(dataset), batch_size, *_place(rank, world_size), wanted)
    return MattingLoader(dataset, batch_sampler=batches, **options)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Fills in rank and world size from torch.distributed, where it runs."""
    running = dist.is_available() and dist.is_initialized()
    if rank is None:
        rank = dist.get_rank() if running else 0
    if world_size is None:
        world_size = dist.get_world_size() if running else 1
    return rank, world_size


def _options(batch_size: int, num_workers: int, pin_memory: bool, timeout: float) -> dict[str, Any]:
    check_whole("batch_size", [batch_size], 1)
    check_whole("num_workers", [num_workers], 0)
    if not is_number(timeout) or timeout < 0:
        raise ConfigError(f"timeout must be at least 0 seconds, not {timeout!r}.")
    if not isinstance(pin_memory, bool):
        raise ConfigError(f"pin_memory must be True or False, not {pin_memory!r}.")
    return {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        "timeout": timeout if num_workers else 0,  # without workers nobody can wait
        # Without one of its own, a loader draws from torch's global generator when it starts.
        "generator": torch.Generator(),
        "worker_init_fn": _start_worker,
    }


def _end_workers(iterator: Iterator) -> None:
    """Ends the workers of a loader: asks them to, and kills those that hang.

    They take no other signal (see _start_worker), so who waits for one to end may wait for ever.
    """
    if hasattr(iterator, "_shutdown_workers"):  # none without workers
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()


def _start_worker(worker: int) -> None:
    """Keeps a worker to one core; the workers are the parallelism."""
    # Not 1, which has OpenCV wait for threads that a fork leaves behind; 0 means none, too.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Schedulers signal all processes. What a signal means is the trainer's to say; until then its
    # workers go on.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
