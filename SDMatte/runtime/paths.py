"""Paths as people write them: with ``~`` for the home folder and with ``$VARIABLES``."""

import os
import re

from SDMatte.errors import ConfigError

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


def expand_path(path: str | os.PathLike[str]) -> str:
    """Expand ``~``, ``~user``, ``$NAME`` and ``${NAME}``, as a shell does outside of quotes.

    A file or folder whose own name holds a ``$`` is taken as it is.

    Raises:
        ConfigError: A variable is not set; the message names it.
    """
    text = os.fspath(path)
    if os.path.lexists(text) and not text.startswith("~/"):
        return text

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        component_end = text.find("/", match.end())
        if name not in os.environ:
            if os.path.lexists(text if component_end < 0 else text[:component_end]):
                return match[0]
            raise ConfigError(f"The environment variable {name} in the path {text!r} is not set.")
        return os.environ[name]

    return os.path.expanduser(_VARIABLE.sub(value, text))
