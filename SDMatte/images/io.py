"""Read and write the image files of a matting set: images, alphas, masks and trimaps.

All readers raise a one-sentence `SDMatte.errors.DataError` that names the file if it is missing,
empty, truncated, not an image, or too large (data/README.md, step 1).
"""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import putchunk

from SDMatte.errors import DataError, OutputError
from SDMatte.images.decode import load_image, reduction
from SDMatte.images.formats import WRITERS
from SDMatte.images.modes import (
    alpha_channel,
    gray,
    is_wide,
    palette_labels,
    to_rgb,
    warn_range,
    wide_to_unit,
)
from SDMatte.images.resize import unit
from SDMatte.runtime.files import replace_file

_LARGEST_JPEG_EXIF = 65_533  # bytes
_PNG_HEADER = 33  # bytes: the signature and IHDR; metadata follows them


# --------------------------------------------------------------------- reading


def read_image(path: str | Path) -> np.ndarray:
    """Read the colors of an image, uint8 ``[H, W, 3]``, sRGB, upright, without alpha.

    A PNG, JPEG, WebP, TIFF, BMP, AVIF, HEIC or GIF file may have any bit depth, color mode and
    profile. Only the first frame of an animation, or page of a document, is read.
    """
    image, _ = load_image(path)
    return np.array(to_rgb(image, path))


def read_image_and_alpha(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image like `read_image`, and its transparency, however the file stores it.

    Returns:
        uint8 ``[H, W, 3]``, RGB, not premultiplied; and float32 ``[H, W]`` in [0, 1], or None if
        the image is opaque. A 16-bit alpha keeps its upper 8 bits, rounded down.
    """
    image, _ = load_image(path)
    alpha = alpha_channel(image)
    colors = np.array(to_rgb(image, path))
    if alpha is None or image.info["bits"] != 16:
        return colors, alpha if alpha is None else unit(alpha)
    # Rounded down, so that a matte never exceeds the 16-bit alpha.
    return colors, np.where(alpha == 255, np.float32(1), alpha * np.float32(256 / 65535))


def read_reduced(path: str | Path, at_least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Read the colors of an image at full, 1/2, 1/4 or 1/8 resolution.

    Each pixel is the average of a square of pixels, which may be incomplete at the right and bottom
    edges. JPEG files are decoded at the lower resolution, which is faster.

    Returns:
        uint8 ``[h, w, 3]``, RGB, with at least ``at_least`` rows and columns (see `reduction`); and
        the height and width of the full image.
    """
    image, hw = load_image(path, at_least)
    factor = reduction(hw, at_least)
    image = to_rgb(image, path)
    if image.size == hw[::-1] and factor > 1:  # the decoder did not reduce it
        image = image.reduce(factor)
    return np.array(image), hw


def reduce_matte(matte: np.ndarray, factor: int) -> np.ndarray:
    """Average squares of a matte, uint8 or float32 ``[H, W]``, as `read_reduced` does."""
    return matte if factor == 1 else np.array(Image.fromarray(matte).reduce(factor))


def read_alpha(path: str | Path) -> np.ndarray:
    """Read an alpha matte, however it is stored.

    Gray files of 1, 8, 16 or 32 bits are scaled to [0, 1]. The matte of a file with an alpha
    channel is that channel, unless it is opaque; that of other color files (gray stored as RGB,
    CMYK or palette) is the luminance. 16-bit colors and alpha channels are read as 8 bits.

    Other ranges are recognized, with a warning once per folder: gray values of 0 and 1 of any
    depth, 8-bit values in a 16-bit file (the largest value is 255), integers in a floating-point
    file, and one object labeled by its index in a color palette.

    Returns:
        float32 ``[H, W]`` in [0, 1].

    Raises:
        DataError: The file cannot be read, or labels several objects by their index.
    """
    return unit(read_matte(path))


def read_matte(path: str | Path) -> np.ndarray:
    """Read an alpha matte like `read_alpha`, but as uint8 if the file has up to 8 bits."""
    image, _ = load_image(path)
    if is_wide(image):
        return wide_to_unit(image, path)
    labels = palette_labels(image)
    if labels is not None:
        if labels.max() != labels.min(where=labels > 0, initial=labels.max()):
            raise DataError(
                f"Cannot read {path} as an alpha: it labels several objects by their index "
                f"({list_ids(labels)}). Write the alpha of one of them, gray, from 0 to 255."
            )
        warn_range(path, "the object is the palette index that is not the background's")
        return np.where(labels > 0, 255, 0).astype(np.uint8)
    matte = gray(image)
    if matte.max(initial=0) == 1:
        warn_range(path, "its largest value is 1, so it is read as 0 and 1")
        return matte * np.uint8(255)  # {0, 1} -> {0, 255}
    return matte


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask as it is stored: gray levels, 0 and 1, ids, palette indices or colors.

    Returns:
        ``[H, W]``: integers, or float32 for a floating-point file; 0 is the background. The mask of
        a file with transparency is its alpha; that of a color file is its brightest channel.
    """
    image, _ = load_image(path)
    if is_wide(image) or image.mode == "L":
        return np.array(image)
    labels = palette_labels(image)
    if labels is not None:
        return labels
    alpha = alpha_channel(image)
    return np.array(to_rgb(image, path)).max(axis=2) if alpha is None else alpha


def read_trimap(path: str | Path) -> np.ndarray:
    """Read a trimap: 0 background, 128 unknown, 255 foreground.

    Files with values 0, 1 and 2 (gray or palette indices) are converted to these; other values are
    kept, see `trimap_levels`.

    Returns:
        uint8 ``[H, W]``.

    Raises:
        DataError: The file cannot be read, or its only values are 0 and 1.
    """
    image, _ = load_image(path)
    values = palette_labels(image)
    if values is None and is_wide(image):
        values = np.array(image)
        top = values.max(initial=0)
        if top > 255 or (image.mode == "F" and top != 2):
            values = np.round(255 * wide_to_unit(image, path))  # -> [0, 255]
        values = values.astype(np.uint8)
    elif values is None:
        values = gray(image)
    if values.max(initial=0) in (1, 2):
        return trimap_levels(values, f"The trimap {path}")
    return values


def trimap_levels(trimap: np.ndarray, name: str = "The trimap") -> np.ndarray:
    """Validate a trimap and return it as uint8 0, 128, 255; shared by prompts, files and scores.

    Allowed values are 0 (background), 127 or 128 (unknown) and 255 (foreground); or 0, 1, 2; or
    floating-point 0, 0.5, 1.

    Raises:
        DataError: The trimap has other values, or only 0 and 1, which is ambiguous.
    """
    top = trimap.max(initial=0)
    if trimap.dtype.kind == "f" and top <= 1:
        unknown, foreground = [0.5], 1
    elif top <= 2:
        unknown, foreground = [1], 2
    else:
        unknown, foreground = [127, 128], 255
    levels = np.zeros(trimap.shape, np.uint8)
    levels[np.isin(trimap, unknown)] = 128
    levels[trimap == foreground] = 255
    others = trimap[(levels == 0) & (trimap != 0)]
    if others.size:
        raise DataError(
            f"{name} has the value {others[0]:g}. Allowed are 0 (background), 128 or 127 "
            f"(unknown) and 255 (foreground); or 0, 1, 2; or floating point, 0, 0.5, 1."
        )
    if top == 1 and foreground == 2:
        raise DataError(
            f"{name} has only the values 0 and 1; 1 may mean unknown or foreground: write 0 "
            f"(background), 128 (unknown) and 255 (foreground)."
        )
    return levels


def list_ids(labels: np.ndarray, most: int = 8) -> str:
    """List the ids of a label map for a message, without 0, the background."""
    ids = [f"{label:g}" for label in np.unique(labels[labels != 0])[: most + 1].tolist()]
    return ", ".join(ids if len(ids) <= most else [*ids[:most], "..."])


# --------------------------------------------------------------------- writing


def write_image(
    path: str | Path, array: np.ndarray, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write an image atomically: readers see the old file or the complete new one.

    Args:
        path: The file; its suffix selects PNG, JPEG, WebP (lossless), TIFF or BMP. Missing folders
            are created.
        array: ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, sRGB; uint8, uint16 (gray PNG or TIFF,
            RGBA PNG), bool, or floating point in [0, 1], which is rounded to 8 bits.
        metadata: From `SDMatte.images.decode.read_metadata`; parts that the format cannot store are
            dropped.

    Raises:
        DataError: The suffix or the array is not supported.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    kind, options = WRITERS[path.suffix.lower()]
    array = _to_integers(np.asarray(array), path, kind)
    metadata = dict(metadata or {})
    if kind == "JPEG" and len(metadata.get("exif", b"")) > _LARGEST_JPEG_EXIF:
        del metadata["exif"]
    if kind == "TIFF" and "exif" in metadata:
        options = {}  # Pillow writes EXIF to uncompressed TIFF only
    try:
        with replace_file(path) as temporary:
            if array.dtype == np.uint16 and array.ndim == 3:
                temporary.write_bytes(_encode_16_bit_png(array, metadata))
            else:
                Image.fromarray(array).save(temporary, format=kind, **options, **metadata)
    except ValueError as error:  # such as a WebP with too many pixels
        raise OutputError(f"Cannot write {path}: {error}.") from error
    return path


def check_suffix(path: Path) -> None:
    """Raise a `DataError` if `write_image` does not support the format of a file."""
    if path.suffix.lower() not in WRITERS:
        raise DataError(f"Cannot write {path}: the suffix must be one of {', '.join(WRITERS)}.")


def _to_integers(array: np.ndarray, path: Path, kind: str) -> np.ndarray:
    """Check an array and convert it to uint8 or uint16."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise DataError(
            f"Cannot write {path}: the shape must be [H, W], [H, W, 3] or [H, W, 4]; got "
            f"{list(array.shape)}."
        )
    if array.ndim == 3 and channels == 1:
        array = array[..., 0]  # [H, W, 1] -> [H, W]
    if channels == 4 and kind == "JPEG":
        raise DataError(f"Cannot write {path}: JPEG has no alpha channel, use .png or .webp.")
    if array.dtype == bool:
        return array.astype(np.uint8) * 255  # {0, 1} -> {0, 255}
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also if a value is NaN
            raise DataError(f"Cannot write {path}: floating-point values must be in [0, 1].")
        return np.round(array * 255).astype(np.uint8)  # [0, 1] -> [0, 255]
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16 and (kind, channels) in (("PNG", 1), ("TIFF", 1), ("PNG", 4)):
        return array
    raise DataError(f"Cannot write {path}: {kind} does not support {array.dtype} values.")


def _encode_16_bit_png(array: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
    """Encode uint16 RGBA ``[H, W, 4]`` and metadata; OpenCV writes what Pillow cannot."""
    encoded = cv2.imencode(".png", cv2.cvtColor(array, cv2.COLOR_RGBA2BGRA))[1].tobytes()
    chunks = io.BytesIO()
    if "icc_profile" in metadata:
        putchunk(chunks, b"iCCP", b"ICC profile\0\0", zlib.compress(metadata["icc_profile"]))
    if "dpi" in metadata:
        per_meter = [round(dpi / 0.0254) for dpi in metadata["dpi"]]
        putchunk(chunks, b"pHYs", struct.pack(">IIB", *per_meter, 1))
    if "exif" in metadata:
        putchunk(chunks, b"eXIf", metadata["exif"].removeprefix(b"Exif\0\0"))
    return encoded[:_PNG_HEADER] + chunks.getvalue() + encoded[_PNG_HEADER:]
