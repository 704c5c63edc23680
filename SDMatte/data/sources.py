"""Read the files of samples, at full or reduced size, with a cache."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from SDMatte.images.io import (
    read_image,
    read_matte,
    read_reduced,
    read_trimap,
    reduce_matte,
    reduction,
)


class Source(NamedTuple):
    """The contents of an image file.

    Attributes:
        pixels: uint8 ``[h, w, 3]`` for an image; ``[h, w]`` for a trimap or a matte (uint8, or
            float32 in [0, 1]). Read-only.
        hw: Height and width in the file, larger than ``[h, w]`` if the pixels were reduced.
    """

    pixels: np.ndarray
    hw: tuple[int, int]


class SourceReader:
    """Reader of images, mattes and trimaps with a least-recently-used cache.

    Images and mattes are reduced by the same factor (`SDMatte.images.io.reduction`), to no fewer
    than ``at_least`` rows and columns. Changes to a cached file are not detected.
    """

    def __init__(self, reduced: bool = False, cache_mb: float = 0) -> None:
        """Initialize an empty cache of ``cache_mb`` megabytes of pixels."""
        self._reduced = reduced
        self._limit = int(cache_mb * 1e6)
        self._size = 0
        self._cache: OrderedDict[tuple, Source] = OrderedDict()

    def image(self, path: Path, at_least: tuple[int, int]) -> Source:
        """Read the colors of an image."""
        if self._reduced:
            return self._read(("image", path, at_least), lambda: read_reduced(path, at_least))
        return self._read(("image", path), lambda: _whole(read_image(path)))

    def matte(self, path: Path, at_least: tuple[int, int]) -> Source:
        """Read an alpha matte."""

        def read() -> Source:
            matte = read_matte(path)
            hw = matte.shape
            return Source(reduce_matte(matte, reduction(hw, at_least)), hw)

        if self._reduced:
            return self._read(("matte", path, at_least), read)
        return self._read(("matte", path), lambda: _whole(read_matte(path)))

    def trimap(self, path: Path) -> Source:
        """Read a trimap at full size: its three values must not be averaged."""
        return self._read(("trimap", path), lambda: _whole(read_trimap(path)))

    def _read(self, key: tuple, read: Callable[[], tuple]) -> Source:
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        source = Source(*read())
        source.pixels.flags.writeable = False  # later calls return the same array
        if source.pixels.nbytes <= self._limit:
            self._cache[key] = source
            self._size += source.pixels.nbytes
        while self._size > self._limit:
            _, oldest = self._cache.popitem(last=False)
            self._size -= oldest.pixels.nbytes
        return source


def _whole(pixels: np.ndarray) -> Source:
    return Source(pixels, pixels.shape[:2])
