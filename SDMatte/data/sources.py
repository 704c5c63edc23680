"""Reading the pictures of samples: in full or reduced, from their files or from memory."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from SDMatte.images.decode import reduction
from SDMatte.images.io import read_image, read_matte, read_reduced, read_trimap, reduce_matte


class Source(NamedTuple):
    """A picture that was read.

    Attributes:
        pixels: uint8 ``[h, w, 3]`` of an image, ``[h, w]`` of a matte (or float32 in [0, 1]) or a
            trimap. Not to be written to.
        hw: Height and width of the whole picture, larger than ``[h, w]`` where it was reduced.
    """

    pixels: np.ndarray
    hw: tuple[int, int]


class SourceReader:
    """Reads images, mattes and trimaps, and keeps what it read last as long as there is room.

    A picture is reduced to no less than ``at_least`` rows and columns, or not at all, by the same
    factor whether image or matte (`SDMatte.images.decode.reduction`). A file that changes while
    its picture is kept goes unnoticed.
    """

    def __init__(self, reduced: bool = False, cache_mb: float = 0) -> None:
        """Starts empty.

        Args:
            reduced: Whether to reduce at all.
            cache_mb: Megabytes of pixels to keep, of each process that uses the reader.
        """
        self._reduced = reduced
        self._limit = int(cache_mb * 1e6)
        self._size = 0
        self._kept: OrderedDict[tuple, Source] = OrderedDict()

    def image(self, path: Path, at_least: tuple[int, int]) -> Source:
        """Reads the colours of a picture."""
        if self._reduced:
            return self._keep(("image", path, at_least), lambda: read_reduced(path, at_least))
        return self._keep(("image", path), lambda: _whole(read_image(path)))

    def matte(self, path: Path, at_least: tuple[int, int]) -> Source:
        """Reads an alpha matte."""

        def read() -> Source:
            matte = read_matte(path)
            hw = matte.shape
            return Source(reduce_matte(matte, reduction(hw, at_least)), hw)

        if self._reduced:
            return self._keep(("matte", path, at_least), read)
        return self._keep(("matte", path), lambda: _whole(read_matte(path)))

    def trimap(self, path: Path) -> Source:
        """Reads a trimap; never reduced, its three values do not mix."""
        return self._keep(("trimap", path), lambda: _whole(read_trimap(path)))

    def _keep(self, key: tuple, read: Callable[[], tuple]) -> Source:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        source = Source(*read())
        source.pixels.flags.writeable = False  # whoever comes next gets the same array
        if source.pixels.nbytes <= self._limit:
            self._kept[key] = source
            self._size += source.pixels.nbytes
        while self._size > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._size -= oldest.pixels.nbytes
        return source


def _whole(pixels: np.ndarray) -> Source:
    return Source(pixels, pixels.shape[:2])
