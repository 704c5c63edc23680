"""Decoding image files: limits, first frames, orientation, and faulty metadata."""

import io
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, TiffImagePlugin, features

from SDMatte.errors import ConfigError, DataError, DependencyError, MissingFileError, SDMatteError
from SDMatte.images import warn_once
from SDMatte.images.formats import (
    IMAGE_EXTENSIONS,
    PILLOW_DECODERS,
    TIFF_SIGNATURES,
    describe_unread,
    is_heif,
    is_read,
)
from SDMatte.images.metadata import EXIF_KEPT, ORIENTATION, kept_metadata
from SDMatte.images.repair import without_metadata

_T = TypeVar("_T")

_LIMIT = "SDMATTE_MAX_PIXELS"
_DEFAULT_MAX_PIXELS = 1 << 28  # 268 megapixels; the largest cameras of phones have 200

_REDUCTIONS = (8, 4, 2, 1)  # what a JPEG decoder can do at less cost than all of it
_REDUCED_BY_DECODER = ("JPEG", "MPO")
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# TIFF tags and some of their values
_IMAGE_WIDTH, _IMAGE_LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_CHANNELS, _PLANAR_CONFIGURATION, _SAMPLE_FORMAT, _ICC_PROFILE = 277, 284, 339, 34675
_TIFF_KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}
_FLOAT = 3
_OPENCV_TIFF = ((1, 16), (1, 32), (_FLOAT, 32), (_FLOAT, 64))


def max_pixels() -> int:
    """Return how many pixels an image may have; a small file can claim a size that fills memory.

    The environment variable SDMATTE_MAX_PIXELS sets it, for all processes of a run.

    Raises:
        ConfigError: It is not a positive number.
    """
    text = os.environ.get(_LIMIT, "").strip()
    if not text:
        return _DEFAULT_MAX_PIXELS
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise ConfigError(
            f"{_LIMIT}={text!r:.80}: it is the number of pixels that an image may have, such as "
            f"400000000 or 4e8."
        )
    return int(value)


def load_image(
    path: str | Path, at_least: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Read a file's first frame and turn it as its EXIF tag says.

    Colours are those of the file, not yet sRGB.

    Args:
        path: The file.
        at_least: Rows and columns that must remain, where the decoder can reduce the image.

    Returns:
        The image, smaller where ``at_least`` and the decoder allow it; its whole height and
        width.

    Raises:
        DataError: The file cannot be read as an image.
    """
    return _read(Path(path), lambda image: _decode(image, at_least, path))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read what a cut-out of an image keeps of its metadata.

    Returns:
        Options of `PIL.Image.Image.save`, those that there are: ``exif`` (bytes; without
        orientation and thumbnail), ``dpi`` (of x and y, upright) and, where the image has a
        profile, ``icc_profile`` of the sRGB that its colours are converted to.

    Raises:
        DataError: The file cannot be read as an image.
    """
    path = Path(path)
    return _read(path, lambda image: kept_metadata(image, path))


def read_hw(path: str | Path, exact: bool = False) -> tuple[int, int]:
    """Read height and width of the upright image, as a rule from the file's header alone.

    Args:
        path: The file.
        exact: Decode the file: a PNG may have its EXIF orientation behind the pixels.

    Raises:
        DataError: The file cannot be read as an image.
    """

    def hw(image: Image.Image) -> tuple[int, int]:
        if exact:
            image.load()
        # To look for EXIF, Pillow decodes a PNG that has none in front.
        has_exif = exact or image.format != "PNG" or "exif" in image.info
        turned = has_exif and _orientation(image, path) >= 5
        return image.size if turned else image.size[::-1]

    return _read(Path(path), hw)


def bits_per_channel(path: str | Path) -> int:
    """Return the bits per channel that a PNG or TIFF file has; 8 for others."""

    def bits(image: Image.Image) -> int:
        if image.format == "PNG":
            return _head(Path(path))[24]
        return getattr(image, "tag_v2", {}).get(_BITS, (8,))[0]

    return _read(Path(path), bits)


def reduction(hw: tuple[int, int], at_least: tuple[int, int]) -> int:
    """By what an image can be divided, 1, 2, 4 or 8, so that enough rows and columns remain."""
    fits = (
        f for f in _REDUCTIONS if all(-(-n // f) >= m for n, m in zip(hw, at_least, strict=True))
    )
    return next(fits, 1)


class _PillowSettings:
    """Pillow with our limit and without its warnings, as long as any thread is inside.

    Its limit and Python's warnings are global: the first thread to come in changes them, the last
    one to leave puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: int | None = None
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        limit = max_pixels()
        with self._lock:
            if not self._inside:
                self._limit = Image.MAX_IMAGE_PIXELS
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.MAX_IMAGE_PIXELS = limit
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._limit
                self._warnings.__exit__(None, None, None)


_pillow_settings = _PillowSettings()


def _read(path: Path, use: Callable[[Image.Image], _T]) -> _T:
    """Open a file and use the image; once more without its metadata, if those are at fault."""
    try:
        # To open a named pipe waits for its other end, and a device may have none.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"Cannot read {path}: it is not a file.")
        with _pillow_settings:
            try:
                with _open(path, path) as image:
                    _check(image, path)
                    return use(image)
            except (SDMatteError, Image.DecompressionBombError, MemoryError):
                raise
            except Exception:  # decoders raise OSError, SyntaxError, struct.error, ValueError...
                stripped = without_metadata(path.read_bytes())
                if stripped is None:
                    raise
                data, profile = stripped
                try:
                    with _open(io.BytesIO(data), path) as image:
                        _check(image, path)
                        if profile is not None:
                            image.info["icc_profile"] = profile
                        return use(image)
                except Exception:  # then it is not the metadata
                    pass
                raise
    except (SDMatteError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        claimed = re.search(r"\d+(?= pixels)", str(error))
        pixels = int(claimed[0]) if claimed else 2 * max_pixels()
        raise _too_large(path, pixels, f"{pixels / 1e6:.0f} megapixels") from error
    except Exception as error:
        kind = MissingFileError if not os.path.exists(path) else DataError
        raise kind(f"Cannot read {path}: {_reason(path, error)}.") from error


def _open(source: Path | io.BytesIO, path: Path) -> Image.Image:
    head = _head(source)
    known = describe_unread(path.name, head)
    if known:
        raise DataError(f"Cannot read {path}: {known}.")
    if is_heif(head):
        return _open_heif(source, path)
    try:
        return Image.open(source, formats=PILLOW_DECODERS)
    except Image.UnidentifiedImageError:
        if head[4:8] == b"ftyp" and not features.check("avif"):
            raise DependencyError(
                f"Cannot read {path}: the installed Pillow has no AVIF; install pillow>=11.3 "
                f"from PyPI."
            ) from None
        if head[:4] not in TIFF_SIGNATURES:
            raise
        return _open_tiff(source, path)


def _check(image: Image.Image, path: Path) -> None:
    """Refuse an opened image before its pixels are decoded."""
    _check_size(path, image.size)
    if image.format == "TIFF":
        tags = image.tag_v2
        if _is_planar(tags) and _tiff_values(tags)[0] > 8 and tags.get(_COMPRESSION, 1) == 1:
            raise _unread_tiff(path, tags)  # Pillow takes them to be of 8 bits


def _open_heif(source: Path | io.BytesIO, path: Path) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile  # its import takes a while, and few need it
    except ImportError as error:
        raise DependencyError(
            f"Cannot read {path}: HEIC images need a package: pip install pillow-heif."
        ) from error
    return HeifImageFile(source)


def _head(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:4096]
    with open(source, "rb") as file:
        return file.read(4096)


def _open_tiff(source: Path | io.BytesIO, path: Path) -> Image.Image:
    """Decode a TIFF that Pillow has no mode for, floating-point colours mostly, by OpenCV."""
    import cv2

    data = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
    is_large = data[:4] in TIFF_SIGNATURES[2:]
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if is_large else 8])
    with io.BytesIO(data) as file:
        file.seek(tags.next)
        tags.load(file)
    if _IMAGE_WIDTH not in tags or _IMAGE_LENGTH not in tags:
        raise OSError("no image directory")
    _check_size(path, (tags[_IMAGE_WIDTH], tags[_IMAGE_LENGTH]))
    bits, kind, channels = _tiff_values(tags)
    has_colours = tags.get(_PHOTOMETRIC) == 2 and channels in (3, 4) and not _is_planar(tags)
    is_gray = tags.get(_PHOTOMETRIC) == 1 and channels == 1 and kind == _FLOAT
    if not (has_colours or is_gray) or (kind, bits) not in _OPENCV_TIFF:
        raise _unread_tiff(path, tags)
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if values is None or values.ndim != (3 if has_colours else 2):
        raise OSError("its pixels cannot be decoded")
    if has_colours:
        top = 1.0 if kind == _FLOAT else float(2**bits - 1)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= top):  # also where one of them is NaN
            raise DataError(
                f"Cannot read {path}: its values go from {low:g} to {high:g}, a floating-point "
                f"image may hold 0 to 1."
            )
        values = np.round(values * (255 / top)).astype(np.uint8)  # [0, top] -> [0, 255]
        values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA)
    image = Image.fromarray(values.astype(np.float32) if is_gray else values)
    image.getexif().update({t: tags[t] for t in (*EXIF_KEPT, ORIENTATION) if t in tags})
    image.info["icc_profile"] = tags.get(_ICC_PROFILE)
    return image


def _tiff_values(tags: Mapping[int, Any]) -> tuple[int, int, int]:
    """Return the bits of a channel, the kind of its values and the number of channels."""
    return tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0], tags.get(_CHANNELS, 1)


def _is_planar(tags: Mapping[int, Any]) -> bool:
    return tags.get(_PLANAR_CONFIGURATION) == 2


def _unread_tiff(path: Path, tags: Mapping[int, Any]) -> DataError:
    bits, kind, channels = _tiff_values(tags)
    return DataError(
        f"Cannot read {path}: it is a TIFF of {channels} channels of {bits}-bit "
        f"{_TIFF_KINDS.get(kind, 'other')} values{' in planes' if _is_planar(tags) else ''}, which "
        f"is not read; it must be converted to PNG or an 8-bit TIFF first."
    )


def _check_size(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > max_pixels():
        raise _too_large(path, size[0] * size[1], f"{size[0]}x{size[1]} pixels")


def _too_large(path: Path, pixels: int, size: str) -> DataError:
    return DataError(
        f"Cannot read {path}: it claims {size}, the limit is {max_pixels() / 1e6:.0f} megapixels. "
        f"If the file can be trusted, raise the limit by the environment variable "
        f"{_LIMIT}={pixels}."
    )


def _decode(
    image: Image.Image, at_least: tuple[int, int] | None, path: str | Path
) -> tuple[Image.Image, tuple[int, int]]:
    _warn_of_frames(image, path)
    width, height = image.size
    hw = (height, width)
    if at_least is not None and image.format in _REDUCED_BY_DECODER:
        orientation = _orientation(image, path)
        factor = reduction(hw[::-1] if orientation >= 5 else hw, at_least)
        # Turned, the squares that are cut off would lie at the left or the top.
        if orientation == 1 or not (width % factor or height % factor):
            image.draft(None, (max(1, width // factor), max(1, height // factor)))
    image.load()
    orientation = _orientation(image, path)  # a PNG may have it behind the pixels
    if orientation != 1:
        image = image.transpose(_TURNED[orientation])
    return image, hw[::-1] if orientation >= 5 else hw


def _orientation(image: Image.Image, path: str | Path) -> int:
    """Return the EXIF orientation, 1 to 8; from 5 on, height and width change places."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever is wrong with it, the pixels are not
        warn_once(f"{path}: its EXIF data are damaged; it is taken to be upright.")
        return 1
    return value if value in range(1, 9) else 1


def _warn_of_frames(image: Image.Image, path: str | Path) -> None:
    if image.format == "MPO":  # of phones and 3D cameras: previews, depth, the other eye's view
        return
    try:
        several = getattr(image, "is_animated", False)
        if several and image.format == "TIFF":
            image.seek(1)
            several = not image.tag_v2.get(254, 0) & 5  # a thumbnail or a mask is not a page
            image.seek(0)
    except Exception:  # of what comes after it, the first frame does not depend
        return
    if several:
        which = "main" if image.format == "HEIF" else "first"
        warn_once(f"{path} holds several frames or pages; only the {which} one is read.")


def _reason(path: Path, error: Exception) -> str:
    """Say why a file could not be decoded."""
    if isinstance(error, PermissionError):
        return "its permissions forbid it"
    if not os.path.exists(path):  # unlike Path.exists, of names that cannot be, too
        return "the file does not exist"
    if path.stat().st_size == 0:
        return "the file is empty"
    details = " ".join(str(error).split()) or "no data"
    if isinstance(error, Image.UnidentifiedImageError):
        if not is_read(_head(path)):
            return f"it is not an image ({', '.join(IMAGE_EXTENSIONS)} are read)"
        details = "its header"
    return f"the image is damaged or cut short ({details})"
