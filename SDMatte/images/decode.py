"""Decode image files: size limit, first frame, orientation, and damaged metadata.

Functions that read a file raise a `SDMatte.errors.DataError` if it cannot be read as an image.
"""

import contextlib
import io
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from SDMatte.errors import ConfigError, DataError, DependencyError, MissingFileError, SDMatteError
from SDMatte.images import warn_once
from SDMatte.images.formats import (
    IMAGE_EXTENSIONS,
    PILLOW_DECODERS,
    TIFF_SIGNATURES,
    describe_unsupported,
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
_GRAY, _RGB, _FLOAT = 1, 2, 3
_OPENCV_TIFF = ((1, 16), (1, 32), (_FLOAT, 32), (_FLOAT, 64))  # sample format and bits
_HEAD = 4096  # bytes from which the format is recognized


def max_pixels() -> int:
    """Return the size limit, SDMATTE_MAX_PIXELS; small files can claim to be huge."""
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
    """Read the first frame of a file, rotated upright by its EXIF orientation.

    Args:
        path: The file.
        at_least: Minimum rows and columns, if the decoder may reduce the image.

    Returns:
        The image, in any mode but La, with colors as stored (not yet sRGB), reduced if ``at_least``
        and the decoder allow it; its ``info["bits"]`` is the file's bits per channel. And the full
        height and width.
    """
    return _read(Path(path), lambda image: _decode(image, at_least, path))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata that a cutout of an image keeps.

    Returns:
        Options of `PIL.Image.Image.save` for which the file has values: ``exif`` (bytes; without
        orientation and thumbnail), ``dpi`` (x and y of the upright image), and ``icc_profile``,
        the profile of the sRGB colors that `SDMatte.images.io.read_image` returns.
    """
    path = Path(path)
    return _read(path, lambda image: kept_metadata(image, path))


def read_hw(path: str | Path, exact: bool = False) -> tuple[int, int]:
    """Read the height and width of the upright image, usually from the file's header only.

    With ``exact``, the file is decoded: a PNG may store its EXIF orientation after the pixels.
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


def reduction(hw: tuple[int, int], at_least: tuple[int, int]) -> int:
    """Return the largest divisor of 1, 2, 4, 8 that keeps a height and width ``at_least`` as large.

    These are the factors by which a JPEG decoder can reduce an image.
    """
    for factor in (8, 4, 2):
        if all(-(-n // factor) >= m for n, m in zip(hw, at_least, strict=True)):
            return factor
    return 1


_lock = threading.Lock()


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Suspend Pillow's global size limit, whose message would not name our setting."""
    with _lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _read(path: Path, use: Callable[[Image.Image], _T]) -> _T:
    """Open a file and call ``use`` with its image; if that fails, retry without its metadata."""
    try:
        # Opening a named pipe waits for its other end, and reading a device may never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"Cannot read {path}: it is not a file.")
        try:
            with open(path, "rb") as file:
                return _read_from(file, path, use)
        except (SDMatteError, MemoryError):
            raise
        except Exception:  # decoders raise OSError, SyntaxError, struct.error, ValueError...
            stripped = without_metadata(path.read_bytes())
            if stripped is not None:
                with contextlib.suppress(Exception):  # then the metadata is not the cause
                    return _read_from(io.BytesIO(stripped[0]), path, use, stripped[1])
            raise
    except (SDMatteError, MemoryError):
        raise
    except Exception as error:
        kind = DataError if os.path.exists(path) else MissingFileError
        raise kind(f"Cannot read {path}: {_reason(path, error)}.") from error


def _read_from(
    source: BinaryIO, path: Path, use: Callable[[Image.Image], _T], profile: bytes | None = None
) -> _T:
    head = source.read(_HEAD)
    source.seek(0)
    unsupported = describe_unsupported(path.name, head)
    if unsupported:
        raise DataError(f"Cannot read {path}: {unsupported}.")
    with _open(source, head, path) as image:
        _check_size(path, image.size)
        tags = getattr(image, "tag_v2", {})
        image.info["bits"] = head[24] if image.format == "PNG" else tags.get(_BITS, (8,))[0]
        # Pillow would read 16-bit planes as 8-bit.
        if image.info["bits"] > 8 and _is_planar(tags) and tags.get(_COMPRESSION, 1) == 1:
            raise _unsupported_tiff(path, tags)
        if profile is not None:
            image.info["icc_profile"] = profile
        return use(image)


def _open(source: BinaryIO, head: bytes, path: Path) -> Image.Image:
    brands = head[8 : int.from_bytes(head[:4], "big")] if head[4:8] == b"ftyp" else b""
    if brands and b"avif" not in brands and b"avis" not in brands:
        try:
            import pillow_heif  # slow to import, and rarely needed
        except ImportError as error:
            raise DependencyError(
                f"Cannot read {path}: HEIC images need pillow-heif: pip install pillow-heif."
            ) from error
        if pillow_heif.is_supported(source):
            return pillow_heif.HeifImageFile(source)
    try:
        with _without_pillow_limit():
            return Image.open(source, formats=PILLOW_DECODERS)
    except Image.UnidentifiedImageError:
        if head[:4] not in TIFF_SIGNATURES:
            raise
        source.seek(0)
        return _open_tiff(source.read(), path)


def _open_tiff(data: bytes, path: Path) -> Image.Image:
    """Open a TIFF that Pillow does not identify, without its metadata or by OpenCV.

    For example, Pillow has no mode for floating-point colors.
    """
    stripped = without_metadata(data)
    if stripped is not None:
        with _without_pillow_limit(), contextlib.suppress(Image.UnidentifiedImageError):
            return Image.open(io.BytesIO(stripped[0]), formats=("TIFF",))
    is_big_tiff = data[:4] in TIFF_SIGNATURES[2:]
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if is_big_tiff else 8])
    with io.BytesIO(data) as file:
        file.seek(tags.next)
        tags.load(file)
    _check_size(path, (tags[_IMAGE_WIDTH], tags[_IMAGE_LENGTH]))
    values_kind = (tags.get(_SAMPLE_FORMAT, (1,))[0], tags.get(_BITS, (1,))[0])
    is_gray = tags.get(_PHOTOMETRIC) == _GRAY and values_kind[0] == _FLOAT
    has_known_layout = (is_gray or tags.get(_PHOTOMETRIC) == _RGB) and not _is_planar(tags)
    if values_kind not in _OPENCV_TIFF or not has_known_layout:
        raise _unsupported_tiff(path, tags)
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if values is None or values.ndim != (2 if is_gray else 3):
        raise OSError("its pixels cannot be decoded")
    if is_gray:
        image = Image.fromarray(values.astype(np.float32))
    else:
        top = 1 if values_kind[0] == _FLOAT else 2 ** values_kind[1] - 1
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= top):  # also if a value is NaN
            raise DataError(
                f"Cannot read {path}: its values range from {low:g} to {high:g}; a floating-point "
                f"image must be in 0 to 1."
            )
        values = np.round(values * (255 / top)).astype(np.uint8)  # [0, top] -> [0, 255]
        code = cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        image = Image.fromarray(cv2.cvtColor(values, code))
    image.getexif().update({t: tags[t] for t in (*EXIF_KEPT, ORIENTATION) if t in tags})
    image.info["icc_profile"] = tags.get(_PROFILE)
    return image


def _is_planar(tags: Mapping[int, Any]) -> bool:
    return tags.get(_PLANAR_CONFIGURATION) == 2


def _unsupported_tiff(path: Path, tags: Mapping[int, Any]) -> DataError:
    return DataError(
        f"Cannot read {path}: this kind of TIFF ({tags.get(_CHANNELS, 1)} channels of "
        f"{tags.get(_BITS, (1,))[0]} bits) is not supported; convert it to PNG or an 8-bit TIFF."
    )


def _check_size(path: Path, size: tuple[int, int]) -> None:
    pixels, limit = size[0] * size[1], max_pixels()
    if pixels > limit:
        raise DataError(
            f"Cannot read {path}: it claims {size[0]}x{size[1]} pixels; the limit is "
            f"{limit / 1e6:.0f} megapixels. If you trust the file, set the environment variable "
            f"{_LIMIT}={pixels}."
        )


def _decode(
    image: Image.Image, at_least: tuple[int, int] | None, path: str | Path
) -> tuple[Image.Image, tuple[int, int]]:
    _warn_about_frames(image, path)
    width, height = image.size
    hw = (height, width)
    if at_least is not None and image.format in ("JPEG", "MPO"):
        orientation = _orientation(image, path)
        factor = reduction(hw[::-1] if orientation >= 5 else hw, at_least)
        # After a rotation, incomplete squares would be at the left or the top.
        if orientation == 1 or not (width % factor or height % factor):
            image.draft(None, (max(1, width // factor), max(1, height // factor)))
    # Pillow checks the size of a TIFF's tiles again.
    with _without_pillow_limit() if image.format == "TIFF" else contextlib.nullcontext():
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


def _warn_about_frames(image: Any, path: str | Path) -> None:
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
    if isinstance(error, Image.UnidentifiedImageError):
        return (
            f"it is not an image, or its header is damaged or truncated (supported: "
            f"{', '.join(IMAGE_EXTENSIONS)})"
        )
    details = " ".join(str(error).split()) or "no data"
    return f"the image is damaged or truncated ({details})"
