"""Images from and to disk: every kind of file that a matting set holds, one kind of error.

Whatever is wrong with a file (missing, empty, cut short, not an image, too large) ends in a
`SDMatte.errors.DataError` of one sentence that names it (data/README.md, step 1).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from SDMatte.errors import DataError, OutputError
from SDMatte.images.color import to_srgb
from SDMatte.images.decode import load_image as _load
from SDMatte.images.decode import reduction
from SDMatte.images.formats import IMAGE_EXTENSIONS, WRITERS
from SDMatte.images.metadata import says_more_than_resolution
from SDMatte.images.png import encode_16_bit_png

_LARGEST_JPEG_EXIF = 65_533


def read_image(path: str | Path) -> np.ndarray:
    """Read the colours of an image; an alpha channel is dropped, EXIF rotation applied.

    Args:
        path: A PNG, JPEG, WebP, TIFF, BMP, AVIF, HEIC or GIF file of any bit depth, colour mode
            and profile. Of an animation or of several pages, the first is read.

    Returns:
        uint8 ``[H, W, 3]``, sRGB.

    Raises:
        DataError: The file cannot be read as an image.
    """
    picture, _ = _load(path)
    return np.array(_to_rgb(picture, path))


def pillow_to_rgb(picture: Image.Image) -> np.ndarray:
    """Take the colours of a Pillow image of any mode and profile, not turned.

    Returns:
        uint8 ``[H, W, 3]``, sRGB.

    Raises:
        DataError: It cannot be decoded, or its values have no known range.
    """
    try:
        picture.load()
        return np.array(_to_rgb(picture, "the image"))
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError...
        raise DataError(f"The image cannot be decoded: {error}.") from error


def read_reduced(path: str | Path, at_least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads the colours of a picture at a half, a quarter or an eighth of its size, where it can.

    Squares of pixels are averaged to one; at the right and the bottom, what is left of them. Of
    JPEG files only the coefficients that this needs are transformed, which is faster.

    Args:
        path: As for `read_image`.
        at_least: Rows and columns that must remain, see `reduction`.

    Returns:
        uint8 ``[h, w, 3]``, RGB, and height and width of the whole picture.

    Raises:
        DataError: The file cannot be read as a picture.
    """
    picture, hw = _load(path, at_least)
    factor = reduction(hw, at_least)
    picture = _to_rgb(picture, path)
    if picture.size == hw[::-1] and factor > 1:  # the decoder could not
        picture = picture.reduce(factor)
    return np.array(picture), hw


def read_alpha(path: str | Path) -> np.ndarray:
    """Reads an alpha matte, however it was stored.

    Gray files of 1, 8, 16 or 32 bits are scaled to [0, 1]; colour files count by their luminance
    (a gray picture stored as RGB, CMYK or with a palette). Of a file with an alpha channel that
    channel is the matte, unless it is opaque all over: then the colours are. Where colours or an
    alpha channel have 16 bits, the upper 8 count.

    Args:
        path: The picture file.

    Returns:
        float32 ``[H, W]`` in [0, 1].

    Raises:
        DataError: The file cannot be read as a picture.
    """
    matte = read_matte(path)
    return matte.astype(np.float32) / 255 if matte.dtype == np.uint8 else matte  # -> [0, 1]


def read_matte(path: str | Path) -> np.ndarray:
    """Reads an alpha matte like `read_alpha`, but leaves 8 bits as they are.

    Returns:
        ``[H, W]``: uint8 of a file of 8 bits or fewer, else float32 in [0, 1].

    Raises:
        DataError: The file cannot be read as a picture.
    """
    picture, _ = _load(path)
    return _wide_to_unit(picture, path) if _is_wide(picture.mode) else _gray(picture)


def read_trimap(path: str | Path) -> np.ndarray:
    """Reads a trimap as it is stored: 0 background, 128 unknown, 255 foreground.

    Args:
        path: The picture file.

    Returns:
        uint8 ``[H, W]``.

    Raises:
        DataError: The file cannot be read as a picture.
    """
    picture, _ = _load(path)
    if _is_wide(picture.mode):
        return np.round(255 * _wide_to_unit(picture, path)).astype(np.uint8)  # -> [0, 255]
    return _gray(picture)


def reduce_matte(matte: np.ndarray, factor: int) -> np.ndarray:
    """Divides a matte as `read_reduced` does a picture.

    Args:
        matte: ``[H, W]``, uint8 or float32.
        factor: Side of the squares that are averaged to one pixel.
    """
    return matte if factor == 1 else np.array(Image.fromarray(matte).reduce(factor))


def write_image(
    path: str | Path, array: np.ndarray, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write an image in one piece: a reader sees the old file or the whole new one.

    Args:
        path: Where to; the suffix chooses PNG, JPEG, WebP (lossless), TIFF or BMP. Missing
            folders are made.
        array: ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, uint8, uint16 (gray PNG or TIFF, or
            PNG with alpha), bool, or floating point in [0, 1], which is rounded to 8 bits.
            Colours are sRGB.
        metadata: Of `SDMatte.images.decode.read_metadata`; what the format cannot hold is left
            out.

    Returns:
        The path written.

    Raises:
        DataError: The suffix or the array does not allow it.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    kind, options = WRITERS[path.suffix.lower()]
    array = _to_integers(np.asarray(array), path, kind)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    metadata = dict(metadata or {})
    if kind == "JPEG" and len(metadata.get("exif", b"")) > _LARGEST_JPEG_EXIF:
        del metadata["exif"]
    if kind == "TIFF" and says_more_than_resolution(metadata.get("exif", b"")):
        options = {}  # libtiff, which compresses, does not write these; Pillow's own encoder does
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if array.dtype == np.uint16 and array.ndim == 3:
                temporary.write_bytes(encode_16_bit_png(array, metadata))
            else:
                Image.fromarray(array).save(temporary, format=kind, **options, **metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # of a WebP with too many pixels: ValueError
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"Cannot write {path}: {reason}.") from error
    return path


def check_suffix(path: Path) -> None:
    """Ensure that `write_image` knows the format of a file.

    Raises:
        DataError: It does not.
    """
    if path.suffix.lower() not in WRITERS:
        raise DataError(f"Cannot write {path}: the suffix must be one of {', '.join(WRITERS)}.")


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
    """Lists the pictures of a folder as `list_names` does, with their paths."""
    return [Path(directory, name) for name in list_names(directory)]


def names_by_stem(directory: str | Path, preferred: str = "") -> dict[str, str]:
    """Maps the stem of each picture of a folder to its file name.

    Where two files share a stem, the one with the ``preferred`` extension wins, then the order
    of `IMAGE_EXTENSIONS`.

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


def find_partner(path: str | Path, directory: str | Path) -> Path:
    """Finds the file of the same stem in another folder, whatever its extension.

    Args:
        path: A file, of which only the name is used.
        directory: Where to look; the order is that of `IMAGE_EXTENSIONS`, each in lower and
            upper case.

    Raises:
        DataError: There is none; the message names the file that is missing.
    """
    path, directory = Path(path), Path(directory)
    for suffix in IMAGE_EXTENSIONS:
        for spelling in (suffix, suffix.upper()):
            partner = directory / f"{path.stem}{spelling}"
            if partner.is_file():
                return partner
    raise DataError(
        f"{path.name} has no partner: there is no {path.stem} with any of the extensions "
        f"{', '.join(IMAGE_EXTENSIONS)} in {directory}."
    )


def _is_picture_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def _is_wide(mode: str) -> bool:
    """Whether a Pillow mode holds one channel of more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def _to_rgb(picture: Image.Image, path: str | Path) -> Image.Image:
    """Bring an image of any mode and profile to RGB, sRGB."""
    if _is_wide(picture.mode):
        unit = _wide_to_unit(picture, path)
        profile = picture.info.get("icc_profile")
        picture = Image.fromarray(np.round(255 * unit).astype(np.uint8))  # [0, 1] -> [0, 255]
        picture.info["icc_profile"] = profile
    picture = to_srgb(picture, path)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # straight to RGB, Pillow warns
    return picture if picture.mode == "RGB" else picture.convert("RGB")


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
    if array.dtype == np.uint16 and (array.ndim, kind) in ((2, "PNG"), (2, "TIFF")):
        return array
    if array.dtype == np.uint16 and (channels, kind) == (4, "PNG"):
        return array
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    raise DataError(f"Cannot write {path}: {array.dtype} values do not fit a {kind} file.")
