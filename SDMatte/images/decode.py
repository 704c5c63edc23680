"""Decoding image files: limits, first frames, orientation, and damaged metadata.

Functions that read a file raise a `SDMatte.errors.DataError` if it cannot be read as an image.
"""

import contextlib
import io
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, features

from SDMatte.errors import ConfigError, DataError, DependencyError, MissingFileError, SDMatteError
from SDMatte.images import warn_once
from SDMatte.images.formats import (
    IMAGE_EXTENSIONS,
    PILLOW_DECODERS,
    TIFF_SIGNATURES,
    describe_unsupported,
    is_heif,
    is_supported,
)
from SDMatte.images.metadata import EXIF_KEPT, ORIENTATION, kept_metadata
from SDMatte.images.repair import without_metadata

_T = TypeVar("_T")

_LIMIT = "SDMATTE_MAX_PIXELS"
_DEFAULT_MAX_PIXELS = 1 << 28  # 268 megapixels; phones have up to 200

_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# TIFF tags and some of their values
_SUBFILE_TYPE, _IMAGE_WIDTH, _IMAGE_LENGTH, _BITS, _COMPRESSION = 254, 256, 257, 258, 259
_PHOTOMETRIC, _CHANNELS, _PLANAR_CONFIGURATION, _SAMPLE_FORMAT, _PROFILE = 262, 277, 284, 339, 34675
_TIFF_KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}
_GRAY, _RGB, _FLOAT = 1, 2, 3
_OPENCV_TIFF = ((1, 16), (1, 32), (_FLOAT, 32), (_FLOAT, 64))


def max_pixels() -> int:
    """Return the largest number of pixels of an image; a small file can claim to be huge.

    Set by the environment variable SDMATTE_MAX_PIXELS.

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
            f"{_LIMIT} must be a number of pixels, such as 400000000 or 4e8; got {text!r:.80}."
        )
    return int(value)


def load_image(
    path: str | Path, at_least: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Read the first frame of a file, upright by its EXIF orientation.

    Args:
        path: The file.
        at_least: Minimum rows and columns, if the decoder may reduce the image.

    Returns:
        The image, of any mode but La, colors as stored (not yet sRGB), reduced if ``at_least``
        and the decoder allow it; and the full height and width.
    """
    return _read(Path(path), lambda image: _decode(image, at_least, path))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata that a cut-out of an image keeps.

    Returns:
        Options of `PIL.Image.Image.save`, as far as the file has them: ``exif`` (bytes; without
        orientation and thumbnail), ``dpi`` (x and y of the upright image), and ``icc_profile``,
        the profile of the sRGB colors that `SDMatte.images.io.read_image` returns.
    """
    path = Path(path)
    return _read(path, lambda image: kept_metadata(image, path))


def read_hw(path: str | Path, exact: bool = False) -> tuple[int, int]:
    """Read height and width of the upright image, usually from the file's header only.

    Args:
        path: The file.
        exact: Decode the file: a PNG may store its EXIF orientation after the pixels.
    """

    def hw(image: Image.Image) -> tuple[int, int]:
        if image.format == "TIFF":  # Pillow opens it with the size of the upright image
            return image.size[::-1]
        if exact:
            image.load()
        # Pillow would decode a PNG without EXIF in its header to look for it.
        has_exif = exact or image.format != "PNG" or "exif" in image.info
        is_transposed = has_exif and _orientation(image, path) >= 5
        return image.size if is_transposed else image.size[::-1]

    return _read(Path(path), hw)


def bits_per_channel(path: str | Path) -> int:
    """Return the bits per channel of a PNG or TIFF file; 8 for other formats."""

    def bits(image: Image.Image) -> int:
        if image.format == "PNG":
            return _head(Path(path))[24]
        return getattr(image, "tag_v2", {}).get(_BITS, (8,))[0]

    return _read(Path(path), bits)


def reduction(hw: tuple[int, int], at_least: tuple[int, int]) -> int:
    """Return the largest divisor of an image's size, 1, 2, 4 or 8, that leaves enough pixels.

    These are the factors by which a JPEG decoder can reduce an image.

    Args:
        hw: Height and width of the image.
        at_least: Minimum rows and columns of the result.
    """
    for factor in (8, 4, 2):
        if all(-(-n // factor) >= m for n, m in zip(hw, at_least, strict=True)):
            return factor
    return 1


_lock = threading.Lock()
_readers = 0
_restore = contextlib.ExitStack()


@contextlib.contextmanager
def _pillow_settings() -> Iterator[None]:
    """Apply our limit of pixels and silence Pillow's warnings.

    Both are global, so the first thread to enter changes them and the last one restores them.
    """
    global _readers
    limit = max_pixels()
    with _lock:
        if not _readers:
            _restore.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            _restore.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = limit
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                _restore.close()


def _read(path: Path, use: Callable[[Image.Image], _T]) -> _T:
    """Open a file and use its image; if that fails, once more without its metadata."""
    try:
        # Opening a named pipe waits for its other end, and a device may have no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"Cannot read {path}: it is not a file.")
        with _pillow_settings():
            try:
                return _read_from(path, path, use)
            except (SDMatteError, Image.DecompressionBombError, MemoryError):
                raise
            except Exception:  # decoders raise OSError, SyntaxError, struct.error, ValueError...
                stripped = without_metadata(path.read_bytes())
                if stripped is not None:
                    with contextlib.suppress(Exception):  # the metadata is not at fault
                        return _read_from(io.BytesIO(stripped[0]), path, use, stripped[1])
                raise
    except (SDMatteError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        claimed = re.search(r"\d+(?= pixels)", str(error))
        pixels = int(claimed[0]) if claimed else 2 * max_pixels()
        raise _too_large(path, pixels, f"{pixels / 1e6:.0f} megapixels") from error
    except Exception as error:
        kind = DataError if os.path.exists(path) else MissingFileError
        raise kind(f"Cannot read {path}: {_reason(path, error)}.") from error


def _read_from(
    source: Path | io.BytesIO,
    path: Path,
    use: Callable[[Image.Image], _T],
    profile: bytes | None = None,
) -> _T:
    with _open(source, path) as image:
        _check_size(path, image.size)
        if image.format == "TIFF":
            tags = image.tag_v2
            # Pillow would read these as 8 bits.
            if _is_planar(tags) and _tiff_values(tags)[0] > 8 and tags.get(_COMPRESSION, 1) == 1:
                raise _unsupported_tiff(path, tags)
        if profile is not None:
            image.info["icc_profile"] = profile
        return use(image)


def _open(source: Path | io.BytesIO, path: Path) -> Image.Image:
    head = _head(source)
    unsupported = describe_unsupported(path.name, head)
    if unsupported:
        raise DataError(f"Cannot read {path}: {unsupported}.")
    if is_heif(head):
        try:
            from pillow_heif import HeifImageFile  # slow to import, and rarely needed
        except ImportError as error:
            raise DependencyError(
                f"Cannot read {path}: HEIC images need pillow-heif: pip install pillow-heif."
            ) from error
        return HeifImageFile(source)
    try:
        return Image.open(source, formats=PILLOW_DECODERS)
    except Image.UnidentifiedImageError:
        if head[4:8] == b"ftyp" and not features.check("avif"):
            raise DependencyError(
                f"Cannot read {path}: the installed Pillow does not support AVIF; install "
                f"pillow>=11.3 from PyPI."
            ) from None
        if head[:4] not in TIFF_SIGNATURES:
            raise
        return _open_tiff(source, path)


def _head(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:4096]
    with open(source, "rb") as file:
        return file.read(4096)


def _open_tiff(source: Path | io.BytesIO, path: Path) -> Image.Image:
    """Open a TIFF that Pillow does not identify: without its metadata, or decoded by OpenCV.

    Pillow has no mode for floating-point colors, among others.
    """
    data = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
    stripped = without_metadata(data)
    if stripped is not None:
        with contextlib.suppress(Image.UnidentifiedImageError):
            return Image.open(io.BytesIO(stripped[0]), formats=("TIFF",))
    is_big_tiff = data[:4] in TIFF_SIGNATURES[2:]
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if is_big_tiff else 8])
    with io.BytesIO(data) as file:
        file.seek(tags.next)
        tags.load(file)
    if _IMAGE_WIDTH not in tags or _IMAGE_LENGTH not in tags:
        raise OSError("no image directory")
    _check_size(path, (tags[_IMAGE_WIDTH], tags[_IMAGE_LENGTH]))
    bits, kind, channels = _tiff_values(tags)
    has_colors = tags.get(_PHOTOMETRIC) == _RGB and channels in (3, 4) and not _is_planar(tags)
    is_gray = tags.get(_PHOTOMETRIC) == _GRAY and channels == 1 and kind == _FLOAT
    if not (has_colors or is_gray) or (kind, bits) not in _OPENCV_TIFF:
        raise _unsupported_tiff(path, tags)
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if values is None or values.ndim != (3 if has_colors else 2):
        raise OSError("its pixels cannot be decoded")
    if is_gray:
        image = Image.fromarray(values.astype(np.float32))
    else:
        top = 1.0 if kind == _FLOAT else float(2**bits - 1)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= top):  # also if a value is NaN
            raise DataError(
                f"Cannot read {path}: its values range from {low:g} to {high:g}; a floating-point "
                f"image must be in 0 to 1."
            )
        values = np.round(values * (255 / top)).astype(np.uint8)  # [0, top] -> [0, 255]
        code = cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA
        image = Image.fromarray(cv2.cvtColor(values, code))
    image.getexif().update({t: tags[t] for t in (*EXIF_KEPT, ORIENTATION) if t in tags})
    image.info["icc_profile"] = tags.get(_PROFILE)
    return image


def _tiff_values(tags: Mapping[int, Any]) -> tuple[int, int, int]:
    """Return the bits of a channel, the kind of its values and the number of channels."""
    return tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0], tags.get(_CHANNELS, 1)


def _is_planar(tags: Mapping[int, Any]) -> bool:
    return tags.get(_PLANAR_CONFIGURATION) == 2


def _unsupported_tiff(path: Path, tags: Mapping[int, Any]) -> DataError:
    bits, kind, channels = _tiff_values(tags)
    layout = " in planes" if _is_planar(tags) else ""
    return DataError(
        f"Cannot read {path}: TIFF with {channels} channels of {bits}-bit "
        f"{_TIFF_KINDS.get(kind, 'other')} values{layout} is not supported; convert it to PNG or "
        f"an 8-bit TIFF."
    )


def _check_size(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > max_pixels():
        raise _too_large(path, size[0] * size[1], f"{size[0]}x{size[1]} pixels")


def _too_large(path: Path, pixels: int, size: str) -> DataError:
    return DataError(
        f"Cannot read {path}: it claims {size}, the limit is {max_pixels() / 1e6:.0f} megapixels. "
        f"If you trust the file, set the environment variable {_LIMIT}={pixels}."
    )


def _decode(
    image: Image.Image, at_least: tuple[int, int] | None, path: str | Path
) -> tuple[Image.Image, tuple[int, int]]:
    _warn_of_frames(image, path)
    width, height = image.size
    hw = (height, width)
    if at_least is not None and image.format in ("JPEG", "MPO"):
        orientation = _orientation(image, path)
        factor = reduction(hw[::-1] if orientation >= 5 else hw, at_least)
        # In a rotated image, the incomplete squares would be at the left or the top.
        if orientation == 1 or not (width % factor or height % factor):
            image.draft(None, (max(1, width // factor), max(1, height // factor)))
    image.load()
    orientation = _orientation(image, path)  # a PNG may store it after the pixels
    if orientation != 1:
        image = image.transpose(_TRANSPOSED[orientation])
    if image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    return image, hw[::-1] if orientation >= 5 else hw


def _orientation(image: Image.Image, path: str | Path) -> int:
    """Return the EXIF orientation, 1 to 8; from 5 on, height and width are swapped."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF can raise anything; the pixels are not affected
        warn_once(f"{path}: its EXIF data are damaged; the image is assumed to be upright.")
        return 1
    return value if value in range(1, 9) else 1


def _warn_of_frames(image: Any, path: str | Path) -> None:
    if image.format == "MPO":  # previews, depth maps or second views of phones and 3D cameras
        return
    try:
        is_animated = getattr(image, "is_animated", False)
        if is_animated and image.format == "TIFF":
            image.seek(1)
            is_animated = not image.tag_v2.get(_SUBFILE_TYPE, 0) & 5  # a thumbnail or a mask
            image.seek(0)
    except Exception:  # damaged later frames do not affect the first one
        return
    if is_animated:
        which = "main" if image.format == "HEIF" else "first"
        warn_once(f"{path} has several frames or pages; only the {which} one is read.")


def _reason(path: Path, error: Exception) -> str:
    """Return why a file could not be decoded."""
    if isinstance(error, PermissionError):
        return "permission denied"
    if not os.path.exists(path):  # Path.exists raises an error for invalid names
        return "the file does not exist"
    if path.stat().st_size == 0:
        return "the file is empty"
    details = " ".join(str(error).split()) or "no data"
    if isinstance(error, Image.UnidentifiedImageError):
        if not is_supported(_head(path)):
            return f"it is not an image (supported: {', '.join(IMAGE_EXTENSIONS)})"
        details = "its header"
    return f"the image is damaged or truncated ({details})"
