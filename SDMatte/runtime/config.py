"""Loading configs: LazyConfig files with checked overrides, and what is derived from them."""

import builtins
import copy
import difflib
import inspect
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SDMatte.compat  # noqa: F401

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from SDMatte.errors import ConfigError, MissingFileError, SDMatteError
from SDMatte.runtime.devices import choose_device
from SDMatte.runtime.paths import expand_path
from SDMatte.runtime.settings import (
    OPTIONAL_TEXT,
    PATH_KEYS,
    PATHS,
    SETTINGS,
    TEXT,
    check_settings,
)

logger = logging.getLogger(__name__)

SECTIONS = ("model", "criterion", "dataloader", "optimizer", "lr_multiplier", "train", "test")


# What hydra's grammar takes without quotes, of what stands in a list or a mapping.
_PLAIN = re.compile(r"[\w./ +-]*", re.ASCII)
_QUOTED_OR_BARE = re.compile(
    r"""'[^']*'|"[^"]*"|"""  # left as they are, whatever is inside
    r"""(?<=[\[{,:])(\s*)((?:[A-Za-z]:[\\/])?[^\[\]{},:'"\s][^\[\]{},:'"]*?)(?=\s*[,\]}])"""
)
_BRACED_NAME = re.compile(r"\$\{([A-Za-z_]\w*)\}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a config file and apply ``key=value`` overrides to settings that exist.

    Paths may start with ``~`` and hold ``$VARIABLES``.

    Args:
        path: A LazyConfig Python file, or the ``config.yaml`` that a run leaves.
        overrides: Such as ``train.epochs=3`` or ``dataloader.train.dataset.names=[AIM-500]``.

    Raises:
        ConfigError: The file, an override or a value is invalid.
        MissingFileError: The file does not exist.
    """
    path = expand_path(path)
    if not Path(path).is_file():
        raise MissingFileError(f"There is no config file {path}.")
    original_import = builtins.__import__
    try:
        config = LazyConfig.load(path)
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
        _apply_override(config, override)
    try:
        _expand_paths(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error
    check_settings(config, SECTIONS)
    return config


def _apply_override(config: DictConfig, override: str) -> None:
    """Set one setting to the value of a ``key=value`` override."""
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"An override is written key=value; got {override!r}.")
    if key.startswith("~"):
        raise ConfigError(f"{override!r}: a setting cannot be deleted, only changed.")
    key = key.lstrip("+")
    _check_key(config, key)
    try:
        value = parse_value(text, is_text=_is_text(config, key))
        OmegaConf.update(config, key, value, merge=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            f"The override {override!r} is not valid: {_first_line(error)}. Lists are written "
            f"[a, b] and mappings {{name: value}}; a text with special characters in them wants "
            f"quotes, and the whole override as well, for the shell: '{key}=[\"a text\"]'."
        ) from error


def _is_text(config: DictConfig, key: str) -> bool:
    """Return whether a setting is a text, so that its value is to be taken as it stands."""
    if key in PATHS or SETTINGS.get(key) in (TEXT, OPTIONAL_TEXT):
        return True
    try:
        return isinstance(OmegaConf.select(config, key), str)
    except OmegaConfBaseException:  # a reference that leads nowhere; it is about to be replaced
        return False


def parse_value(text: str, is_text: bool = False) -> Any:
    """Read the value of an override.

    Lists, mappings, numbers and quoted texts are read by hydra's grammar. What that refuses for
    its characters only (``~/x``, ``/x/My Runs (1)``) need not be quoted.

    Args:
        text: What stands behind the ``=``.
        is_text: Whether a text is wanted: then all but null, lists, mappings and quoted texts is
            one, as it stands.

    Raises:
        HydraException: It cannot be parsed.
    """
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_override(f"x={text}")
        if parsed.is_sweep_override():
            raise HydraException(f"{text} is several values")
    except HydraException:
        if is_text:
            return text.strip()
        quoted = _QUOTED_OR_BARE.sub(_quote, text)
        if quoted == text:
            raise
        return parser.parse_override(f"x={quoted}").value()
    value = parsed.value()
    if not is_text or value is None or isinstance(value, list | dict) or text.strip()[:1] in "'\"":
        return value
    return text.strip()


def _quote(match: re.Match) -> str:
    space, bare = match[1], match[2]
    return match[0] if bare is None or _PLAIN.fullmatch(bare) else f'{space}"{bare}"'


def _expand_paths(config: DictConfig) -> None:
    """Expand ``~`` and ``$VARIABLES`` in all settings that are paths."""
    for key in PATHS:
        section, _, name = key.rpartition(".")
        node = OmegaConf.select(config, section)
        if isinstance(node, DictConfig) and name in node:
            value = OmegaConf.to_container(node, resolve=False)[name]
            node[name] = _expand(value, config)
    for part in ("train", "test"):
        node = OmegaConf.select(config, f"dataloader.{part}.dataset")
        if isinstance(node, DictConfig) and "names" in node:
            names = OmegaConf.to_container(node, resolve=False)["names"]
            for item in names if isinstance(names, list) else [names]:
                if isinstance(item, dict):
                    item.update({k: _expand(item[k], config) for k in PATH_KEYS if k in item})
            node.names = names


def _expand(value: Any, config: DictConfig) -> Any:
    """Expand a path, but for references to other settings, such as ``${train.output_dir}``."""
    if not isinstance(value, str):
        return value
    # OmegaConf would take ${HOME} for a setting of the config.
    value = _BRACED_NAME.sub(lambda m: m[0] if m[1] in config else expand_path(m[0]), value)
    return value if "${" in value else expand_path(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


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
    if hasattr(target, "setting_names"):
        return target.setting_names()
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
        raise ConfigError(f"A part of the config is invalid: {_first_line(error)}.") from error


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
