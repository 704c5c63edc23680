"""Image files: which formats, how they are decoded, their colours and their metadata."""

import logging
from functools import lru_cache

logger = logging.getLogger(__name__)


@lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Log a warning about a file; once in a process, since a data set reads its files again."""
    logger.warning(message)
