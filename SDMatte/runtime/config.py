"""Load LazyConfig files with validated overrides, and instantiate what they describe."""

import builtins
import copy
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import SDMatte.compat  # noqa: F401

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from SDMatte.errors import ConfigError, MissingFileError, SDMatteError, first_line
from SDMatte.runtime.files import expand_path
from SDMatte.runtime.schema import unknown_setting
from SDMatte.runtime.settings import (
    GROUPS,
    PATH_KEYS,
    PATHS,
    REMOVED,
    RENAMED,
    SECTIONS,
    check_settings,
)

# Characters that hydra's grammar accepts unquoted inside a list or a mapping.
_PLAIN = re.compile(r"[\w./ +-]*", re.ASCII)
_QUOTED_OR_BARE = re.compile(
    r"""'[^']*'|"[^"]*"|"""
    r"""(?<=[\[{,:])(\s*)((?:[A-Za-z]:[\\/])?[^\[\]{},:'"\s][^\[\]{},:'"]*?)(?=\s*[,\]}])"""
)
_BRACED_NAME = re.compile(r"\$\{([A-Za-z_]\w*)\}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a config file and apply ``key=value`` overrides to existing settings.

    Paths may start with ``~`` and contain ``$VARIABLES``.

    Args:
        path: A LazyConfig Python file, or the ``config.yaml`` of a run.
        overrides: Such as ``train.epochs=3`` or ``dataloader.train.dataset.names=[AIM-500]``.

    Raises:
        ConfigError: The file, an override or a value is invalid.
        MissingFileError: The file does not exist.
    """
    path = expand_path(path)
    if not Path(path).is_file():
        raise MissingFileError(f"Config file {path} not found.")
    original_import = builtins.__import__
    try:
        config = LazyConfig.load(path)
    except SDMatteError:
        raise
    except Exception as error:  # a config is code and can raise anything
        text = f"{type(error).__name__}: {error}"
        if isinstance(error.__cause__, SyntaxError):  # detectron2's message has only the file
            text += f" Line {error.__cause__.lineno}: {error.__cause__.msg}."
        raise ConfigError(f"{path} does not load: {text}") from error
    finally:  # LazyConfig patches `__import__` and does not restore it after an error
        builtins.__import__ = original_import
    missing = [name for name in SECTIONS if name not in config]
    if missing:
        raise ConfigError(f"{path} is not the config of a run: {', '.join(missing)} missing.")
    try:
        _replace_old_settings(config, path)
        for override in overrides:
            _apply_override(config, override)
        _expand_paths(config)
        check_settings(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    return config


def _replace_old_settings(config: DictConfig, path: str) -> None:
    """Update the ``config.yaml`` of an earlier version; refuse old settings in Python files."""
    for key in (*RENAMED, *REMOVED):
        section, _, name = key.rpartition(".")
        node = OmegaConf.select(config, section)
        if not isinstance(node, DictConfig) or name not in node:
            continue
        if path.endswith(".py"):
            _refuse_old_setting(key)
        if key in RENAMED:
            OmegaConf.update(config, RENAMED[key], node[name])
        del node[name]


def _refuse_old_setting(key: str) -> None:
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            raise ConfigError(f"The setting {key} is now called {new}{key.removeprefix(old)}.")
    if key in REMOVED:
        raise ConfigError(f"The setting {key} was removed; its value is always {REMOVED[key]}.")


def _apply_override(config: DictConfig, override: str) -> None:
    """Set one setting to the value of a ``key=value`` override."""
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"Overrides are written key=value; got {override!r}.")
    if key.startswith("~"):
        raise ConfigError(f"{override!r}: settings can be changed, but not deleted.")
    key = key.lstrip("+")
    _check_key(config, key)
    try:
        value = parse_value(text, is_text=_is_text(config, key))
        OmegaConf.update(config, key, value, merge=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            f"The override {override!r} is invalid: {first_line(error)}. Lists are written "
            f"[a, b] and mappings {{name: value}}. In these, quote strings with special "
            f"characters; for the shell, quote the whole override: '{key}=[\"a text\"]'."
        ) from error


def _is_text(config: DictConfig, key: str) -> bool:
    """Return whether a setting is a string, so that its value is taken verbatim."""
    if key in PATHS:
        return True
    section, *names = key.split(".")
    kind: Any = GROUPS.get(section)
    for name in names:
        field = getattr(kind, "model_fields", {}).get(name)
        kind = field.annotation if field is not None else None
    if kind in (str, str | None):
        return True
    try:
        return isinstance(OmegaConf.select(config, key), str)
    except OmegaConfBaseException:  # an invalid reference, about to be replaced
        return False


def parse_value(text: str, is_text: bool = False) -> Any:
    """Parse the value of an override.

    Hydra's grammar parses lists, mappings, numbers and quoted strings. Strings that it rejects only
    for their characters (``~/x``, ``/x/My Runs (1)``) need no quotes.

    Args:
        text: The part after the ``=``.
        is_text: Whether the setting is a string. If so, everything except null, lists, mappings
            and quoted strings is returned verbatim.

    Raises:
        HydraException: The value cannot be parsed.
    """
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_override(f"x={text}")
        if parsed.is_sweep_override():
            raise HydraException(f"{text} has several values")
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
            node[name] = _expand(_unresolved(node)[name], config)
    for part in ("train", "test"):
        node = OmegaConf.select(config, f"dataloader.{part}.dataset")
        if isinstance(node, DictConfig) and "names" in node:
            names = _unresolved(node)["names"]
            for item in names if isinstance(names, list) else [names]:
                if isinstance(item, dict):
                    item.update({k: _expand(item[k], config) for k in PATH_KEYS if k in item})
            node.names = names


def _unresolved(node: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))


def _expand(value: Any, config: DictConfig) -> Any:
    """Expand a path, but keep references to other settings, such as ``${train.output_dir}``."""
    if not isinstance(value, str):
        return value
    # OmegaConf would read ${HOME} as a reference to a setting.
    value = _BRACED_NAME.sub(lambda m: m[0] if m[1] in config else expand_path(m[0]), value)
    return value if "${" in value else expand_path(value)


def _check_key(config: DictConfig, key: str) -> None:
    """Reject a key that neither the config nor the callable it configures has."""
    _refuse_old_setting(key)
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        parent, name = ".".join(parts[:depth]), ".".join(parts[: depth + 1])
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{parent} is a value and has no setting {part!r}.")
        known = [str(name) for name in node if not str(name).startswith("_")]
        if "_target_" in node:
            known += [name for name in _parameters(node["_target_"]) if name not in known]
        elif not known:
            return  # a free-form mapping, validated by its reader
        if part not in known:
            raise ConfigError(unknown_setting(name, known))
        if part not in node:
            return
        node = OmegaConf.select(config, name)


def _locate(target: Any) -> Any:
    """Return the callable of a `LazyCall`, which the config.yaml of a run names by its path.

    Raises:
        ConfigError: It cannot be imported.
    """
    if not isinstance(target, str):
        return target
    try:
        found = locate(target)
    except Exception as error:  # the module is code and can raise anything
        raise ConfigError(
            f"The config uses {target}, which cannot be imported: the folder of its module must "
            f"be on PYTHONPATH. ({first_line(error.__cause__ or error)})"
        ) from error
    if not callable(found):
        raise ConfigError(f"The config uses {target}, which must be a class or a function.")
    return found


def _parameters(target: Any) -> list[str]:
    target = _locate(target)
    if hasattr(target, "setting_names"):
        return target.setting_names()
    return [name for name in inspect.signature(target).parameters if name != "self"]


def build(node: DictConfig, **extra: Any) -> Any:
    """Instantiate a part of a config.

    Args:
        node: A `LazyCall`.
        **extra: Arguments known only at run time; the callable gets those that it accepts.

    Raises:
        ConfigError: The callable does not accept a setting, or a reference is invalid.
    """
    node = copy.deepcopy(node)
    known = _parameters(node["_target_"]) if "_target_" in node else []
    node.update({name: value for name, value in extra.items() if name in known})
    try:
        _check_arguments(node)
        return instantiate(node)
    except OmegaConfBaseException as error:
        raise ConfigError(f"A part of the config is invalid: {first_line(error)}.") from error


def _check_arguments(node: Any) -> None:
    """Reject unknown and missing settings of a `LazyCall` and of those nested in it."""
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        target = _locate(node["_target_"])
        known = _parameters(target)
        parameters = inspect.signature(target).parameters.values()
        unknown = [
            name for name in map(str, node) if not name.startswith("_") and name not in known
        ]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if unknown and (not takes_any or hasattr(target, "setting_names")):
            raise ConfigError(
                f"{target.__qualname__} has no setting {', '.join(unknown)}; known are "
                f"{', '.join(known)}."
            )
        missing = [
            p.name
            for p in parameters
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in node
        ]
        if missing:
            raise ConfigError(f"{target.__qualname__} lacks the setting {', '.join(missing)}.")
    for name in node:
        if not OmegaConf.is_missing(node, name):
            _check_arguments(node[name])
