"""The output folder of a run: protection of existing files, and records of the start."""

import contextlib
import errno
import fcntl
import json
import logging
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
import yaml
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from SDMatte.data import MattingDataset
from SDMatte.engine.checkpoint import LAST
from SDMatte.engine.records import RECORDS
from SDMatte.errors import ConfigError, OutputError
from SDMatte.runtime.files import check_not_read, write_text
from SDMatte.runtime.ranks import run_on_main
from SDMatte.scoring.results import versions

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
LOCK = ".lock"
_PACKAGES = ("torchvision", "diffusers", "transformers", "accelerate", "detectron2", "peft")
# Settings without effect on a resumed run, because the checkpoint holds the weights and the
# optimizer's state. Learning rate and weight decay still follow the config.
_FROM_CHECKPOINT = re.compile(
    r"optimizer\.(?!lr$|weight_decay$|params\.)|train\.init_checkpoint$|model\.load_weight\b"
)
_UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
)


def check_unused(folder: Path) -> None:
    """Ensure that a folder holds no checkpoints or records of a run.

    Raises:
        ConfigError: The folder holds a run.
    """
    if any(folder.glob("model_*.pth")) or (folder / RECORDS).exists():
        raise ConfigError(
            f"{folder} already holds a run: add --resume, or choose another train.output_dir."
        )


def check_outputs(config: DictConfig, dataset: MattingDataset) -> None:
    """Ensure that a run overwrites or deletes none of its inputs.

    Raises:
        OutputError: The output folder holds training data or a checkpoint that is read.
    """
    folder = Path(config.train.output_dir)
    paths = {path for sample in dataset.samples for path in (sample.image, sample.alpha)}
    data_folders = {dataset.root / path.rpartition("/")[0] for path in paths}
    distillation = config.get("distillation") or {}
    checkpoints = [config.train.init_checkpoint, distillation.get("teacher_checkpoint")]
    read = [*data_folders, *(path or None for path in checkpoints)]
    check_not_read([folder, *folder.glob("model_*.pth")], read)


@contextlib.contextmanager
def open_output(config: DictConfig) -> Iterator[None]:
    """Create the output folder, keep other runs out of it, and start the log of the run in it.

    Raises:
        ConfigError: Another run is using the folder.
        OutputError: The folder cannot be created or is not writable.
    """
    folder = Path(config.train.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot create {folder}: {error.strerror}.") from error
    with contextlib.ExitStack() as held:
        run_on_main(lambda: held.enter_context(_locked(folder)))
        setup_logger(config.train.output_dir, comm.get_rank(), name="SDMatte")
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process, until it ends in whatever way.

    Unlike a lock by `flock`, this one is not inherited by loader workers, which may outlive a
    killed run for seconds.
    """
    with output_errors(folder), open(folder / LOCK, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    f"Another run is using {folder}: wait for its end, or choose another "
                    f"train.output_dir."
                ) from error
            logger.info("%s is not protected from other runs: %s.", folder, error.strerror)
        yield


def record_start(
    config: DictConfig, config_file: str, device: torch.device, resumed: bool = False
) -> None:
    """Write the config and the environment, and log settings changed since the last start.

    Call this once everything is built and loaded, so that a failed start changes no file. Changed
    settings without effect on a resumed run are logged as such.
    """
    folder = Path(config.train.output_dir)
    before = read_settings(folder / CONFIG) if comm.is_main_process() else {}
    # detectron2 logs the config file and packages, and writes config.yaml.
    default_setup(config, SimpleNamespace(config_file=str(config_file), eval_only=False))
    if not comm.is_main_process():
        return
    write_environment(folder / "environment.json", device, comm.get_world_size())
    now = read_settings(folder / CONFIG)
    changes = {
        name: f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in sorted({*before, *now})
        if before and before.get(name) != now.get(name)
    }
    if changes:
        unused = [name for name in changes if resumed and _FROM_CHECKPOINT.match(name)]
        logger.warning(
            "Settings changed since the last start: %s.%s",
            "; ".join(changes.values()),
            f" No effect on a resumed run: {', '.join(unused)}." if unused else "",
        )


def write_environment(path: str | Path, device: torch.device, num_processes: int) -> None:
    """Write versions, hardware and the command of a run as JSON.

    Raises:
        OutputError: The file cannot be written.
    """
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    content = {
        "command": sys.argv,
        **versions(),
        **{name: installed[name] for name in _PACKAGES if name in installed},
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "machine": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "processes": num_processes,
    }
    write_text(path, json.dumps(content, indent=2) + "\n")


def describe_saved(folder: str | Path) -> str:
    """Describe the last checkpoint of a stopped run."""
    try:
        last = (Path(folder) / LAST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return f"no checkpoint was saved in {folder}"
    return (
        f"the last checkpoint is {Path(folder) / last}. To resume, add --resume to the same command"
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Return the values in a run's config.yaml by full name; empty if it cannot be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return dict(_flatten(content, ""))


def _flatten(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for name, value in node.items():
        yield from _flatten(value, f"{prefix}.{name}" if prefix else str(name))


@contextlib.contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Convert system errors of an unwritable output folder to `OutputError`.

    Raises:
        OutputError: The folder is not writable, or the disk is full.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise OutputError(
            f"Cannot write {error.filename or folder}: {error.strerror}. The checkpoints in "
            f"{folder} are kept."
        ) from error
