"""Image files: formats, decoding, color management, metadata, resizing."""

import logging
from collections.abc import Hashable

logger = logging.getLogger(__name__)

_warned: set[Hashable] = set()


def warn_once(message: str, key: Hashable = None) -> None:
    """Log a warning once per process: training reads the same files every epoch.

    Args:
        message: The warning.
        key: Only the first message with a given key is logged; default: the message itself.
    """
    key = message if key is None else key
    if key not in _warned:
        _warned.add(key)
        logger.warning("%s", message)
