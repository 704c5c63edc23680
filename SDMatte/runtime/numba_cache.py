"""Import functions that numba compiles, even where its cache is not writable."""

import functools
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def load_compiled(load: Callable[[], Any]) -> Any:
    """Return ``load()``, which imports functions that numba compiles and caches.

    numba caches beside the package or in the home folder (or in NUMBA_CACHE_DIR), and fails where
    neither is writable, as in containers. The functions are then compiled for this process only.
    """
    try:
        return load()
    except ImportError:
        raise
    except Exception as error:  # no writable folder, a full disk, a corrupt cache, ...
        logger.debug("numba's cache is not usable (%s); compiling without it.", error)
    import numba

    original = numba.njit

    @functools.wraps(original)
    def njit(*args, **kwargs):
        return original(*args, **{**kwargs, "cache": False})

    numba.njit = njit
    try:
        return load()
    finally:
        numba.njit = original
