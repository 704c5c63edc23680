"""Data loaders for training and testing."""

import atexit
import logging
import signal
from collections.abc import Collection, Iterable, Iterator
from multiprocessing.util import Finalize
from typing import Any

import SDMatte.compat  # noqa: F401

import cv2
import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader

from SDMatte.data.dataset import MattingDataset
from SDMatte.data.samplers import EpochSampler, WeightedSampler, shard_batches
from SDMatte.errors import ConfigError, DataError
from SDMatte.prompts.types import PROMPT_TYPES
from SDMatte.runtime.settings import TrainLoaderSettings

logger = logging.getLogger(__name__)


class MattingLoader(DataLoader):
    """A DataLoader that reports the errors of its workers in one sentence."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches.

        Raises:
            ConfigError: A sample does not fit into memory.
            DataError: A worker raised it, was killed, or returned no batch within the timeout.
        """
        iterator = super().__iter__()
        # Which of the two runs at exit depends on how the process was started. Both run before
        # torch's own handler, after which a loader no longer ends its workers.
        end = Finalize(None, _end_workers, args=(iterator,), exitpriority=10)
        atexit.register(end)
        try:
            yield from iterator
        except (ConfigError, DataError) as error:
            # torch adds the worker's whole traceback to the message.
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__qualname__}: ")[2].strip()) from None
        except RuntimeError as error:
            if "timed out" in str(error):
                names = ", ".join(dict.fromkeys(s.dataset for s in self.dataset.samples))
                raise DataError(
                    f"The loader of {names} gave no batch for {self.timeout:g} s (timeout). Check "
                    f"that the disk is reachable, or raise the timeout."
                ) from None
            if "DataLoader worker" in str(error):
                raise DataError(
                    "A loader worker was killed, most likely because memory ran out. Lower "
                    "num_workers or cache_mb."
                ) from None
            raise
        finally:
            atexit.unregister(end)
            end()


def _end_workers(iterator: Any) -> None:
    """Shut down the workers of a loader, and kill those that hang, since they ignore SIGTERM."""
    if hasattr(iterator, "_shutdown_workers"):  # there are workers
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples into a batch: stack tensors, and collect strings in a list of length B.

    Raises:
        DataError: The images have different shapes.
    """
    shapes = sorted({tuple(sample["image"].shape[1:]) for sample in samples})
    if len(shapes) > 1:
        sizes = " and ".join(f"{width}x{height}" for height, width in shapes)
        raise DataError(
            f"The images of a batch must have one size; got {sizes} pixels. A test with "
            f"keep_aspect needs batch_size=1."
        )
    return {
        key: torch.stack([sample[key] for sample in samples])
        if isinstance(value, torch.Tensor)
        else [sample[key] for sample in samples]
        for key, value in samples[0].items()
    }


def upload_ahead(
    batches: Iterable[dict[str, Any]], device: torch.device
) -> Iterator[dict[str, Any]]:
    """Upload each batch to a GPU while the previous one is processed; on a CPU, just yield it.

    The prompt maps stay on the CPU, see `SDMatte.modeling.SDMatte.predict_latent`.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    stay = PROMPT_TYPES.keys() - {"trimap"}  # the losses need the trimap

    def upload(batch: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event]:
        with torch.cuda.stream(stream):
            moved = {
                key: value.to(device, non_blocking=True)
                if isinstance(value, torch.Tensor) and key not in stay
                else value
                for key, value in batch.items()
            }
            return moved, stream.record_event()

    uploads = map(upload, batches)
    following = next(uploads, None)
    while following is not None:
        (batch, uploaded), following = following, next(uploads, None)
        current = torch.cuda.current_stream(device)
        current.wait_event(uploaded)
        for value in batch.values():
            if isinstance(value, torch.Tensor) and value.is_cuda:
                value.record_stream(current)  # its memory is reused only after this stream's work
        yield batch
        del batch  # free it before the next upload


def build_train_loader(
    dataset: MattingDataset,
    batch_size: int = 1,
    num_workers: int = 4,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    timeout: float = 600,
) -> MattingLoader:
    """Build an endless loader of training batches.

    Args:
        dataset: The samples; sets with weights are mixed accordingly.
        batch_size: Samples per batch and process.
        num_workers: Processes that prepare batches; 0: prepare them in this process.
        seed: Seed of the order of samples.
        rank: Rank of this process; None: that of torch.distributed.
        world_size: Number of processes; None: that of torch.distributed.
        timeout: Seconds without a batch after which the run fails; 0: never.

    Raises:
        ConfigError: A value is out of range.
        DataError: There are no samples.
    """
    options = _options(batch_size, num_workers, timeout, seed)
    shard = _shard(rank, world_size)
    if dataset.mix is None:
        sampler = EpochSampler(len(dataset), seed, *shard)
    else:
        logger.info(dataset.mix.describe())
        sampler = WeightedSampler(dataset.mix, seed, *shard)
    return MattingLoader(dataset, sampler=sampler, batch_size=batch_size, drop_last=True, **options)


def build_test_loader(
    dataset: MattingDataset,
    batch_size: int = 1,
    num_workers: int = 4,
    rank: int | None = None,
    world_size: int | None = None,
    timeout: float = 600,
    wanted: Collection[int] | None = None,
) -> MattingLoader:
    """Build the loader of this rank's part of a test set; the last batch may be smaller.

    For the arguments, see `build_train_loader`. ``wanted`` holds the indices of the samples to
    load, together with the rest of their batches; None: all.
    """
    options = _options(batch_size, num_workers, timeout)
    batches = shard_batches(len(dataset), batch_size, *_shard(rank, world_size), wanted)
    return MattingLoader(dataset, batch_sampler=batches, **options)


def _shard(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if rank is None and world_size is None:
        return comm.get_rank(), comm.get_world_size()
    if not (isinstance(rank, int) and isinstance(world_size, int) and 0 <= rank < world_size):
        raise ConfigError(
            f"A loader's rank must be from 0 to world_size - 1, or both must be null; got "
            f"{rank!r} and {world_size!r}."
        )
    return rank, world_size


def _options(batch_size: int, num_workers: int, timeout: float, seed: int = 0) -> dict[str, Any]:
    """Validate the settings and return the DataLoader arguments shared by training and testing."""
    numbers = dict(batch_size=batch_size, num_workers=num_workers, timeout=timeout, seed=seed)
    TrainLoaderSettings.of({"dataset": {}, **numbers}, "loader")
    return {
        "num_workers": num_workers,
        "collate_fn": collate,
        "timeout": timeout if num_workers else 0,  # torch rejects a timeout without workers
        # Without a generator, a loader draws from torch's global one when it starts.
        "generator": torch.Generator(),
        "worker_init_fn": _start_worker,
        # Copies to a GPU are asynchronous only from pinned memory.
        "pin_memory": torch.cuda.is_available(),
    }


def _start_worker(worker: int) -> None:
    """Limit a worker to one core, and leave signals to the trainer."""
    # With 1, OpenCV can deadlock after a fork; 0 disables its thread pool.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # Schedulers signal every process of a job; the trainer needs its workers until it has reacted.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
