"""Validation of settings by pydantic, with errors of one line."""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from SDMatte.errors import ConfigError


class Settings(BaseModel):
    """Base of all groups of settings: immutable, strictly typed, unknown names are refused.

    Attributes:
        renamed: Old name of a setting to its new one, for the message.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    renamed: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def of(cls, values: "Mapping[str, Any] | Settings | None", name: str = "") -> Self:
        """Validate settings given as a mapping, a part of a config, or as an instance.

        Args:
            values: The settings; None: the defaults.
            name: What the group is called in the config, such as ``"train.ema"``.

        Raises:
            ConfigError: A name is unknown or a value is not allowed.
        """
        if isinstance(values, cls):
            return values
        if isinstance(values, DictConfig):
            values = OmegaConf.to_container(values, resolve=True)
        if not isinstance(values, Mapping | None):
            raise ConfigError(f"{name or cls.__name__} must be a mapping; got {values!r:.80}.")
        try:
            return cls(**(values or {}))
        except ValidationError as error:
            raise ConfigError(cls._describe(error, name)) from error

    @classmethod
    def _describe(cls, error: ValidationError, prefix: str) -> str:
        """Describe the first error: what is wrong, what is allowed."""
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, filter(None, (prefix, *first["loc"]))))
        if first["type"] == "extra_forbidden":
            last = str(first["loc"][-1])
            if last in cls.renamed:
                return f"{name} is now called {cls.renamed[last]}."
            known = list(cls.model_fields)
            near = difflib.get_close_matches(last, known, n=3) or known
            return f"There is no setting {name}; did you mean {', '.join(near)}?"
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
        return f"{name} {message}; got {first['input']!r:.80}."
