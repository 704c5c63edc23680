"""Functions that numba compiles, where their cache cannot be written."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


def load_compiled(load: Callable[[], T]) -> T:
    """Return ``load()``, which imports functions that numba compiles and caches.

    numba caches beside the package or in the home folder, and fails where neither can be written
    to, as in containers. Then the functions are compiled for this process alone. The variable
    NUMBA_CACHE_DIR names another folder for the cache.
    """
    try:
        return load()
    except ImportError:
        raise
    except (
        Exception
    ) as error:  # RuntimeError of no folder, OSError of a full disk, a torn cache ...
        logger.debug("numba cannot use its cache (%s); compiling without it.", error)
        with _without_cache():
            return load()


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    import numba

    original = numba.njit

    @functools.wraps(original)
    def njit(*args, **kwargs):
        return original(*args, **{**kwargs, "cache": False})

    numba.njit = njit
    try:
        yield
    finally:
        numba.njit = original
