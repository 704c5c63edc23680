"""The output folder of a run: who may write to it, and what is there from the first step on."""

import contextlib
import errno
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
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

from SDMatte.engine.environment import write_environment
from SDMatte.errors import ConfigError, OutputError
from SDMatte.runtime.files import check_not_read

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
LAST = "last_checkpoint"
RECORDS = "metrics.json"
_KEPT = re.compile(
    r"optimizer\.(?!lr$|weight_decay$|params\.)|train\.init_checkpoint$|model\.load_weight\b"
)
"""Settings for which a checkpoint's state stands: those of the optimizer, but for learning rate and
weight decay, and where the first weights came from."""
UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
)


def check_unused(folder: Path) -> None:
    """Sees that no run has left checkpoints or records in a folder.

    Raises:
        ConfigError: One has.
    """
    if any(folder.glob("model_*.pth")) or (folder / RECORDS).exists():
        raise ConfigError(
            f"{folder} holds a run: go on with --resume, or name another train.output_dir."
        )


def check_outputs(config: DictConfig, data_folders: Iterable[Path]) -> None:
    """Ensure that a run overwrites, and clears away, nothing that it starts from.

    Args:
        config: The whole config.
        data_folders: Folders of the training data.

    Raises:
        OutputError: The output folder holds data, or a checkpoint that is read would get lost.
    """
    folder = Path(config.train.output_dir)
    distillation = config.get("distillation") or {}
    checkpoints = [config.train.init_checkpoint, distillation.get("teacher_checkpoint")]
    read = [*data_folders, *(path or None for path in checkpoints)]
    check_not_read([folder, *folder.glob("model_*.pth")], read)


def open_output(config: DictConfig) -> None:
    """Makes the output folder with the run's log.

    Raises:
        OutputError: The folder cannot be made.
    """
    folder = Path(config.train.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}).") from error
    setup_logger(config.train.output_dir, comm.get_rank(), name="SDMatte")


def record_start(
    config: DictConfig, config_file: str, device: torch.device, resumed: bool = False
) -> None:
    """Write the config and the environment; log which settings were others before.

    To be called once all is built and resumed: a start that is refused leaves those before it.

    Args:
        config: The whole config.
        config_file: Where it came from.
        device: What trains.
        resumed: Whether the run's state is that of a checkpoint, so that some settings have no
            effect any more.
    """
    folder = Path(config.train.output_dir)
    before = read_settings(folder / CONFIG) if comm.is_main_process() else {}
    # detectron2 logs the config file and packages, and writes config.yaml.
    default_setup(config, SimpleNamespace(config_file=config_file, eval_only=False))
    if comm.is_main_process():
        write_environment(folder / "environment.json", device, comm.get_world_size())
        now = read_settings(folder / CONFIG)
        changes = {
            name: f"{name} was {before.get(name)}, is {now.get(name)}"
            for name in sorted({*before, *now})
            if before and before.get(name) != now.get(name)
        }
        kept = [name for name in changes if resumed and _KEPT.match(name)]
        if changes:
            logger.warning(
                "Other settings than before: %s.%s",
                "; ".join(changes.values()),
                f" Without effect, for the checkpoint decides: {', '.join(kept)}." if kept else "",
            )


def describe_saved(folder: str | Path) -> str:
    """Say which checkpoint a run that was stopped has left."""
    try:
        last = (Path(folder) / LAST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return f"no checkpoint is in {folder}"
    return f"the last checkpoint is {Path(folder) / last}. The same command with --resume resumes"


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the values of a run's config.yaml by full name; none if it cannot be read."""
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
    """Says in a sentence when the output folder cannot be written to.

    Raises:
        OutputError: An error inside was of that kind.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise OutputError(
            f"{error.filename or folder} cannot be written ({error.strerror}); the checkpoints in "
            f"{folder} are kept."
        ) from error
