"""Pictures from and to disk: every kind of file that a matting set holds, one kind of error.

Whatever is wrong with a file (missing, empty, cut short, not a picture, too large) ends in a
:class:`~SDMatte.errors.DataError` of one sentence that names it (data/README.md, step 1).
"""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from SDMatte.errors import DataError

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""Suffixes (lower case) of the files that count as pictures."""

MAX_PIXELS = 170_000_000
"""Pictures with more pixels are refused: a small file can claim a size that fills the memory."""

_EXIF_ORIENTATION = 0x0112
_FORMATS = {
    ".png": ("PNG", {"compress_level": 4}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".bmp": ("BMP", {}),
}


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads the colours of a picture; an alpha channel is dropped, EXIF rotation applied.

    Args:
        path: A PNG, JPEG, WebP, TIFF or BMP file of any bit depth and colour mode.
        max_pixels: Larger pictures are refused.

    Returns:
        uint8 ``[H, W, 3]``, RGB.

    Raises:
        DataError: The file cannot be read as a picture.
    """
    picture = _load(path, max_pixels)
    if _is_wide(picture.mode):
        gray = np.round(255 * _wide_to_unit(picture, path)).astype(np.uint8)  # [0, 1] -> [0, 255]
        return np.repeat(gray[..., None], 3, axis=2)  # [H, W] -> [H, W, 3]
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_alpha(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an alpha matte, however it was stored.

    Gray files of 1, 8, 16 or 32 bits are scaled to [0, 1]; colour files count by their luminance
    (a gray picture stored as RGB, CMYK or with a palette). Of a file with an alpha channel that
    channel is the matte, unless it is opaque all over: then the colours are.

    Args:
        path: The picture file.
        max_pixels: Larger pictures are refused.

    Returns:
        float32 ``[H, W]`` in [0, 1].

    Raises:
        DataError: The file cannot be read as a picture.
    """
    picture = _load(path, max_pixels)
    if _is_wide(picture.mode):
        return _wide_to_unit(picture, path)
    return _gray(picture).astype(np.float32) / 255  # [0, 255] -> [0, 1]


def read_trimap(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a trimap as it is stored: 0 background, 128 unknown, 255 foreground.

    Args:
        path: The picture file.
        max_pixels: Larger pictures are refused.

    Returns:
        uint8 ``[H, W]``.

    Raises:
        DataError: The file cannot be read as a picture.
    """
    picture = _load(path, max_pixels)
    if _is_wide(picture.mode):
        return np.round(255 * _wide_to_unit(picture, path)).astype(np.uint8)  # -> [0, 255]
    return _gray(picture)


def write_image(path: str | Path, array: np.ndarray) -> Path:
    """Writes a picture in one piece: a reader sees the old file or the whole new one.

    Args:
        path: Where to; the suffix chooses PNG, JPEG, WebP (lossless), TIFF or BMP. Missing
            folders are made.
        array: ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, uint8, uint16 (gray PNG or TIFF only),
            bool, or floating point in [0, 1], which is rounded to 8 bits.

    Returns:
        The path written.

    Raises:
        DataError: The suffix, the array or the folder does not allow it.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise DataError(f"Cannot write {path}: the suffix must be one of {', '.join(_FORMATS)}.")
    kind, options = _FORMATS[path.suffix.lower()]
    picture = Image.fromarray(_to_integers(np.asarray(array), path, kind))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            picture.save(temporary, format=kind, **options)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


def list_names(directory: str | Path) -> list[str]:
    """Lists the file names of a folder's pictures, sorted; hidden files are left out.

    Raises:
        DataError: The folder does not exist or cannot be listed.
    """
    try:
        return sorted(name for name in os.listdir(directory) if _is_picture_name(name))
    except FileNotFoundError as error:
        raise DataError(f"The folder {directory} does not exist.") from error
    except OSError as error:
        raise DataError(f"Cannot list the folder {directory}: {error.strerror}.") from error


def list_images(directory: str | Path) -> list[Path]:
    """Lists the pictures of a folder as :func:`list_names` does, with their paths."""
    return [Path(directory, name) for name in list_names(directory)]


def names_by_stem(directory: str | Path, preferred: str = "") -> dict[str, str]:
    """Maps the stem of each picture of a folder to its file name.

    Where two files share a stem, the one with the ``preferred`` extension wins, then the order
    of :data:`IMAGE_EXTENSIONS`.

    Raises:
        DataError: The folder does not exist or cannot be listed.
    """
    order = (preferred, *IMAGE_EXTENSIONS)
    found: dict[str, str] = {}
    for name in list_names(directory):
        stem, suffix = os.path.splitext(name)
        other = found.get(stem)
        if other is None or order.index(suffix.lower()) < order.index(
            os.path.splitext(other)[1].lower()
        ):
            found[stem] = name
    return found


def find_partner(
    path: str | Path, directory: str | Path, extensions: Sequence[str] = IMAGE_EXTENSIONS
) -> Path:
    """Finds the file of the same stem in another folder, whatever its extension.

    Args:
        path: A file, of which only the name is used.
        directory: Where to look.
        extensions: Suffixes to try, in this order, in lower and upper case.

    Raises:
        DataError: There is none; the message names the file that is missing.
    """
    path, directory = Path(path), Path(directory)
    for suffix in extensions:
        for spelling in (suffix, suffix.upper()):
            partner = directory / f"{path.stem}{spelling}"
            if partner.is_file():
                return partner
    raise DataError(
        f"{path.name} has no partner: there is no {path.stem} with any of the extensions "
        f"{', '.join(extensions)} in {directory}."
    )


def _is_picture_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def _load(path: str | Path, max_pixels: int) -> Image.Image:
    """Decodes a file in full and turns it as its EXIF tag says."""
    path = Path(path)
    try:
        # Pillow warns of bombs at half its own limit; our own limit is an error, and lower.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                width, height = picture.size
                if width * height > max_pixels:
                    raise _too_large(path, f"{width}x{height} pixels", max_pixels)
                picture.load()
        if picture.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "a size that no honest file of its kind has", max_pixels) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError...
        raise DataError(f"Cannot read {path}: {_reason(path, error)}.") from error
    return picture


def _too_large(path: Path, size: str, max_pixels: int) -> DataError:
    return DataError(
        f"Cannot read {path}: it claims {size}, the limit is {max_pixels / 1e6:.0f} megapixels."
    )


def _reason(path: Path, error: Exception) -> str:
    """Says in words why a file could not be decoded."""
    if not path.exists():
        return "the file does not exist"
    if not path.is_file():
        return "it is not a file"
    if isinstance(error, PermissionError):
        return "its permissions forbid it"
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is not a picture ({', '.join(IMAGE_EXTENSIONS)} are allowed)"
    return f"the picture is damaged or cut short ({' '.join(str(error).split()) or 'no data'})"


def _is_wide(mode: str) -> bool:
    """Whether a Pillow mode holds one channel of more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def _wide_to_unit(picture: Image.Image, path: str | Path) -> np.ndarray:
    """Scales a 16-bit, 32-bit or floating-point gray picture to float32 in [0, 1]."""
    values = np.asarray(picture, dtype=np.float32)
    top, low = (float(values.max()), float(values.min())) if values.size else (0.0, 0.0)
    limit = 1.0 if picture.mode == "F" else 65535.0
    if not (0 <= low and top <= limit):
        raise DataError(
            f"Cannot read {path}: its values go from {low:g} to {top:g}, a gray picture of mode "
            f"{picture.mode} may hold 0 to {limit:g}."
        )
    return values / np.float32(limit)  # [0, limit] -> [0, 1]


def _gray(picture: Image.Image) -> np.ndarray:
    """Takes the matte out of an 8-bit picture of any mode: uint8 ``[H, W]``."""
    if picture.mode == "L":
        return np.array(picture)
    has_alpha = picture.mode in ("LA", "La", "RGBA", "RGBa", "PA") or (
        "transparency" in picture.info and picture.mode in ("1", "P", "RGB")
    )
    if has_alpha:
        channel = np.array(picture.convert("RGBA").getchannel("A"))
        if (channel < 255).any():
            return channel
    if picture.mode not in ("1", "RGB"):
        picture = picture.convert("RGB")
    return np.array(picture.convert("L"))


def _to_integers(array: np.ndarray, path: Path, kind: str) -> np.ndarray:
    """Checks an array that is to be written and brings it to uint8 or uint16."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise DataError(
            f"Cannot write {path}: the shape {array.shape} is not [H, W], [H, W, 3] or [H, W, 4]."
        )
    if array.ndim == 3 and channels == 1:
        array = array[..., 0]  # [H, W, 1] -> [H, W]
    if channels == 4 and kind == "JPEG":
        raise DataError(f"Cannot write {path}: JPEG has no alpha channel, use .png or .webp.")
    if array.dtype == bool:
        return array.astype(np.uint8) * 255  # {0, 1} -> {0, 255}
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise DataError(f"Cannot write {path}: floating-point pictures must lie in [0, 1].")
        return np.round(array * 255).astype(np.uint8)  # [0, 1] -> [0, 255]
    if array.dtype == np.uint16 and array.ndim == 2 and kind in ("PNG", "TIFF"):
        return array
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    raise DataError(f"Cannot write {path}: {array.dtype} values do not fit a {kind} file.")
