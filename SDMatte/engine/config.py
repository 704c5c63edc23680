"""Loading configs: LazyConfig files with checked overrides, and what is derived from them."""

import builtins
import copy
import difflib
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from SDMatte.devices import choose_device
from SDMatte.engine.settings import check_settings
from SDMatte.errors import ConfigError, SDMatteError
from SDMatte.modeling.sdmatte import SDMatte, constructor_arguments

logger = logging.getLogger(__name__)

SECTIONS = ("model", "criterion", "dataloader", "optimizer", "lr_multiplier", "train", "test")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Loads a config file and applies ``key=value`` overrides to settings that exist.

    Args:
        path: A LazyConfig Python file, or the ``config.yaml`` that a run leaves.
        overrides: Such as ``train.epochs=3`` or ``dataloader.train.dataset.names=[AIM-500]``.

    Raises:
        ConfigError: The file, an override or a value cannot be used.
    """
    if not Path(path).is_file():
        raise ConfigError(f"There is no config file {path}.")
    original_import = builtins.__import__
    try:
        config = LazyConfig.load(str(path))
    except SDMatteError:
        raise
    except Exception as error:  # a config is code, and can fail in any way
        raise ConfigError(f"{path} does not load: {type(error).__name__}: {error}") from error
    finally:  # LazyConfig leaves its own import in place when a config fails
        builtins.__import__ = original_import
    missing = [name for name in SECTIONS if name not in config]
    if missing:
        raise ConfigError(f"{path} is no config of a run: it lacks {', '.join(missing)}.")
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator:
            raise ConfigError(f"An override is written key=value; got {override!r}.")
        _check_key(config, key.lstrip("+~"))
    try:
        config = LazyConfig.apply_overrides(config, list(overrides))
        check_settings(config, SECTIONS)
    except SDMatteError:
        raise
    except Exception as error:  # hydra's parser and omegaconf have no common error
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"The overrides {' '.join(overrides)} are not valid: {reason}") from error
    return config


def _check_key(config: DictConfig, key: str) -> None:
    """Refuses a key that neither the config nor the callable that it configures has."""
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{'.'.join(parts[:depth])} is a value; it has no setting {part!r}.")
        known = [str(name) for name in node if not str(name).startswith("_")]
        if "_target_" in node:
            known += [name for name in _parameters(node["_target_"]) if name not in known]
        elif not known:
            return  # a free mapping, such as the data settings: its reader checks it
        if part not in known:
            near = difflib.get_close_matches(part, known, n=3) or known
            raise ConfigError(
                f"There is no setting {key!r}: {'.'.join(parts[:depth]) or 'the config'} has no "
                f"{part!r}, but {', '.join(near)}."
            )
        if part not in node:
            return
        node = OmegaConf.select(config, ".".join(parts[: depth + 1]))


def _parameters(target: Any) -> list[str]:
    target = locate(target) if isinstance(target, str) else target
    if isinstance(target, type) and issubclass(target, SDMatte):
        return constructor_arguments(target)
    return [name for name in inspect.signature(target).parameters if name != "self"]


def build(node: DictConfig, **extra: Any) -> Any:
    """Instantiates a part of a config.

    Args:
        node: The part, a `LazyCall`.
        **extra: Arguments that only the run knows, for callables that take them.

    Raises:
        ConfigError: Settings that the callable does not take, or references that lead nowhere.
    """
    node = copy.deepcopy(node)
    known = _parameters(node["_target_"]) if "_target_" in node else []
    node.update({name: value for name, value in extra.items() if name in known})
    try:
        _check_arguments(node)
        return instantiate(node)
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"A part of the config cannot be built: {reason}") from error


def _check_arguments(node: Any) -> None:
    """Refuses settings that the callable of a `LazyCall`, or of one inside, does not take."""
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        known = _parameters(node["_target_"])
        unknown = [name for name in node if not name.startswith("_") and name not in known]
        if unknown and "kwargs" not in known:
            target = node["_target_"]
            name = target if isinstance(target, str) else target.__qualname__
            raise ConfigError(
                f"{name} has no setting {', '.join(unknown)}; it takes {', '.join(known)}."
            )
    for name in node:
        if not OmegaConf.is_missing(node, name):
            _check_arguments(node[name])


def resolve_device(name: str) -> torch.device:
    """Reads ``train.device``: ``auto`` is CUDA if there is one, else MPS, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    return choose_device(name, "train.device")


def derive_max_iter(config: DictConfig, num_samples: int, num_processes: int) -> int:
    """Counts the steps of a run from the data's real length.

    The published schedule is 24,401 samples * 10 epochs / 8 processes = 30,501 steps.

    Args:
        config: The whole config; ``train.max_iter``, if set, is the answer.
        num_samples: Samples of an epoch.
        num_processes: Over all machines.

    Raises:
        ConfigError: There is nothing to do.
    """
    train = config.train
    per_step = config.dataloader.train.batch_size * num_processes * train.accumulate
    max_iter, epochs = train.max_iter, train.epochs
    if max_iter is not None:
        return max_iter
    max_iter = round(epochs * num_samples) // per_step
    if max_iter < 1:
        raise ConfigError(
            f"{epochs} epochs of {num_samples} samples are less than one step of "
            f"{per_step} samples."
        )
    return max_iter
