"""Validation of settings by pydantic, with one-line errors."""

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from SDMatte.errors import ConfigError, first_line

_PLAIN_WORDS = (
    (r"^Value error, ", ""),
    (r"^Input should", "must"),
    (r"a valid dictionary( or instance of \w+)?", "a mapping"),
    (r"a valid boolean", "True or False"),
    (r"a valid tuple", "a list"),
    (r"a valid integer", "an integer"),
    (r"a valid (\w+)", r"a \1"),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r"^Tuple should have at (most|least) (\d+ items?).*", r"must have at \1 \2"),
    (r"^String should have at least 1 character", "must not be empty"),
)


class Settings(BaseModel):
    """Base of all groups of settings: immutable, strictly typed, without unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def of(cls, values: "Mapping[str, Any] | Settings | None", name: str = "") -> Self:
        """Validate settings given as a mapping, a part of a config, or an instance.

        Args:
            values: The settings; None: the defaults.
            name: Name of the group in the config, such as ``"train.ema"``.

        Raises:
            ConfigError: A name is unknown or a value is not allowed.
        """
        if isinstance(values, cls):
            return values
        given: Any = _to_container(values, name)
        try:
            if not isinstance(given, Mapping | None):
                raise ConfigError(f"{name or cls.__name__} must be a mapping; got {given!r:.80}.")
            return cls.model_validate(dict(given or {}))
        except ValidationError as error:
            raise ConfigError(cls._describe(error, name)) from error

    @classmethod
    def _describe(cls, error: ValidationError, prefix: str) -> str:
        """Describe the first error: what is wrong, what is allowed."""
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in (prefix, *first["loc"]) if part != "")
        if first["type"] == "missing":
            return f"The setting {name} is missing."
        if first["type"] == "extra_forbidden":
            parent = cls.group(*map(str, first["loc"][:-1]))
            return unknown_setting(name, list(parent.model_fields))
        message = first["msg"]
        for pattern, words in _PLAIN_WORDS:
            message = re.sub(pattern, words, message)
        return f"{name} {message}; got {first['input']!r:.80}."

    @classmethod
    def group(cls, *names: str) -> "type[Settings]":
        """Return the class of a nested group of settings."""
        group: Any = cls
        for name in names:
            group = group.model_fields[name].annotation
        return group


def _to_container(values: Any, name: str) -> Any:
    """Convert a part of a config to a mapping; return anything else unchanged."""
    if "omegaconf" not in sys.modules:  # the values are not part of a config
        return values
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(values, DictConfig):
        return values
    try:
        return OmegaConf.to_container(values, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {first_line(error)}.") from error


def unknown_setting(name: str, known: Sequence[str]) -> str:
    """Return the message for an unknown setting, with similar names or else all of them."""
    near = difflib.get_close_matches(name.rpartition(".")[2], known, n=3)
    return f"Unknown setting {name}; " + (
        f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(known)}."
    )
