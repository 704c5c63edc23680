"""Pictures from and to disk: every kind of file that a matting set holds, one kind of error.

Whatever is wrong with a file (missing, empty, cut short, not a picture, too large) ends in a
`SDMatte.errors.DataError` of one sentence that names it (data/README.md, step 1).
"""

import logging
import os
import stat
import warnings
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from SDMatte.deep_png import encode_deep_png
from SDMatte.errors import DataError, OutputError
from SDMatte.files import NameLookup, list_error, replace_file, stem_key

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""Suffixes (lower case) of the files that count as pictures."""

MAX_PIXELS = 170_000_000
"""Pictures with more pixels are refused: a small file can claim a size that fills the memory."""

# Whatever a file calls itself, no other decoder gets at it: Pillow has one that starts Ghostscript.
_DECODERS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # MPO comes with JPEG
_REDUCTIONS = (8, 4, 2, 1)  # what a JPEG decoder can do at less cost than all of it
_REDUCED_BY_DECODER = ("JPEG", "MPO")
_EXIF_ORIENTATION = 0x0112
_FORMATS = {
    ".png": ("PNG", {"compress_level": 4}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # colours under alpha 0, too
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".bmp": ("BMP", {}),
}


def read_image(path: str | Path) -> np.ndarray:
    """Reads the colours of a picture; an alpha channel is dropped, EXIF rotation applied.

    Args:
        path: A PNG, JPEG, WebP, TIFF or BMP file of any bit depth and colour mode.

    Returns:
        uint8 ``[H, W, 3]``, RGB.

    Raises:
        DataError: The file cannot be read as a picture.
    """
    picture, _ = _load(path)
    return np.array(_to_rgb(picture, path))


def pillow_to_rgb(picture: Image.Image) -> np.ndarray:
    """Takes the colours of a Pillow picture of any mode, as it stands: uint8 ``[H, W, 3]``.

    Raises:
        DataError: It cannot be decoded, or its values have no known range.
    """
    try:
        return np.array(_to_rgb(picture, "the picture"))
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError...
        raise DataError(f"The picture cannot be decoded: {error}.") from error


def read_icc_profile(path: str | Path) -> bytes | None:
    """Reads the colour profile of an RGB picture, None where there is none of RGB colours.

    Raises:
        DataError: The file cannot be read as a picture.
    """
    try:
        with _open(path) as picture:
            profile = picture.info.get("icc_profile")
    except Exception as error:
        raise DataError(f"Cannot read {path}: {_reason(Path(path), error)}.") from error
    is_rgb = isinstance(profile, bytes) and profile[16:20] == b"RGB "
    return profile if is_rgb else None


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


def reduction(hw: tuple[int, int], at_least: tuple[int, int]) -> int:
    """By what a picture can be divided, 1, 2, 4 or 8, so that enough rows and columns remain."""
    fits = (
        f for f in _REDUCTIONS if all(-(-n // f) >= m for n, m in zip(hw, at_least, strict=True))
    )
    return next(fits, 1)


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


def write_image(path: str | Path, array: np.ndarray, icc_profile: bytes | None = None) -> Path:
    """Writes a picture in one piece: a reader sees the old file or the whole new one.

    Args:
        path: Where to; the suffix chooses PNG, JPEG, WebP (lossless), TIFF or BMP. Missing
            folders are made.
        array: ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, uint8, uint16 (gray PNG or TIFF, or
            PNG with alpha), bool, or floating point in [0, 1], which is rounded to 8 bits.
        icc_profile: The colour profile to write into it; BMP files hold none.

    Returns:
        The path written.

    Raises:
        DataError: The suffix or the array does not allow it.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    kind, options = _FORMATS[path.suffix.lower()]
    if icc_profile is not None:
        options = {**options, "icc_profile": icc_profile}
    array = _to_integers(np.asarray(array), path, kind)
    try:
        with replace_file(path) as temporary:
            if array.dtype == np.uint16 and array.ndim == 3:
                temporary.write_bytes(encode_deep_png(array, icc_profile))
            else:
                Image.fromarray(array).save(temporary, format=kind, **options)
    except ValueError as error:  # of a WebP with too many pixels
        raise OutputError(f"Cannot write {path}: {error}.") from error
    return path


def check_suffix(path: Path) -> None:
    """Sees that `write_image` knows what a file is to be.

    Raises:
        DataError: It does not.
    """
    if path.suffix.lower() not in _FORMATS:
        raise DataError(f"Cannot write {path}: the suffix must be one of {', '.join(_FORMATS)}.")


_SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # what Windows leaves in folders
_NAMES_SHOWN = 5


def list_names(directory: str | Path) -> list[str]:
    """List the file names of a folder's images, sorted; hidden files are left out.

    Raises:
        DataError: The folder does not exist or cannot be listed.
    """
    return sorted(filter(_is_image_name, _list_folder(directory)[0]))


def list_images(directory: str | Path) -> list[Path]:
    """List the images of a folder as `list_names` does, with their paths."""
    return [Path(directory, name) for name in list_names(directory)]


@dataclass(frozen=True)
class FolderScan:
    """What a folder holds, by path relative to it (``/`` between the parts), sorted.

    Attributes:
        folder: The folder.
        images: The images, if asked for also those of all sub-folders.
        others: Files beside them that are not images; hidden ones and system files do not count.
        sub_folders: Images in each sub-folder, at any depth, where these are not in ``images``.
    """

    folder: Path
    images: tuple[str, ...]
    others: tuple[str, ...]
    sub_folders: dict[str, int]

    @property
    def num_left_out(self) -> int:
        """How many files are not among the images."""
        return len(self.others) + sum(self.sub_folders.values())

    def log_left_out(self, hint: str = "") -> None:
        """Log which files are not among the images.

        Args:
            hint: How to include those of the sub-folders, a sentence.
        """
        if self.others:
            logger.warning(
                "%s: %s left out, not images: %s.",
                self.folder,
                _count(len(self.others), "file"),
                shorten(self.others),
            )
        if self.sub_folders:
            logger.warning(
                "%s: %s in %s left out: %s.%s",
                self.folder,
                _count(sum(self.sub_folders.values()), "image"),
                _count(len(self.sub_folders), "sub-folder"),
                shorten([f"{name} ({number})" for name, number in self.sub_folders.items()]),
                f" {hint}" if hint else "",
            )


def scan_folder(
    directory: str | Path, recursive: bool = False, skip: Iterable[str | Path] = ()
) -> FolderScan:
    """List what is in a folder and its sub-folders; each folder once, whatever links lead to it.

    Args:
        directory: The folder.
        recursive: Whether the images of sub-folders are wanted, or only their number.
        skip: Sub-folders that are not looked at, because they are known to hold something else.

    Raises:
        DataError: The folder, or a sub-folder whose images are wanted, cannot be listed.
    """
    images, others = [], []
    inside: dict[str, int] = {}
    seen = {os.path.realpath(path) for path in (directory, *skip)}
    pending = deque([""])
    while pending:
        place = pending.popleft()
        try:
            files, folders, links = _list_folder(Path(directory, place))
        except DataError:
            if recursive or not place:
                raise
            continue
        for name in (*folders, *links):
            real = os.path.realpath(os.path.join(directory, place, name))
            if real not in seen:
                seen.add(real)
                # Links last, so that a folder counts under its own name where it has one here.
                (pending.append if name in links else pending.appendleft)(_join(place, name))
        found = [_join(place, name) for name in files if _is_image_name(name)]
        if recursive or not place:
            images += found
            others += [_join(place, name) for name in files if not _is_image_name(name)]
        elif found:
            top = place.partition("/")[0]
            inside[top] = inside.get(top, 0) + len(found)
    sub_folders = dict(sorted(inside.items()))
    return FolderScan(Path(directory), tuple(sorted(images)), tuple(sorted(others)), sub_folders)


def _list_folder(directory: str | Path) -> tuple[list[str], list[str], list[str]]:
    """List names of files, folders and linked folders, without hidden ones and system files."""
    files, folders, links = [], [], []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FILES:
                    continue
                if not _is_folder(entry):
                    files.append(entry.name)
                else:
                    (links if entry.is_symlink() else folders).append(entry.name)
    except OSError as error:
        raise list_error(directory, error) from error
    return files, sorted(folders), sorted(links)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(names: Iterable[str]) -> str:
    """Write the first of many names on a line, and how many more there are."""
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def names_by_stem(directory: str | Path, preferred: str = "") -> dict[str, str]:
    """Map the `stem_key` of each image of a folder to its file name.

    Where several files share a stem, the one with the ``preferred`` extension wins, then the
    order of `IMAGE_EXTENSIONS`; the others are logged.

    Raises:
        DataError: The folder does not exist or cannot be listed, or a name is ambiguous.
    """
    order = (preferred, *IMAGE_EXTENSIONS)
    found: dict[str, str] = {}
    shadowed = []
    names = list_names(directory)
    for name in sorted(names, key=lambda name: order.index(os.path.splitext(name)[1].lower())):
        other = found.setdefault(stem_key(name), name)
        if os.path.splitext(other)[0] != os.path.splitext(name)[0]:
            raise DataError(
                f"{directory} holds the same name in two Unicode spellings, {ascii(other)} and "
                f"{ascii(name)}: rename one of them."
            )
        if other != name:
            shadowed.append(f"{name} (beside {other})")
    if shadowed:
        logger.warning(
            "%s: %s left out, another has the same name: %s.",
            directory,
            _count(len(shadowed), "image"),
            shorten(shadowed),
        )
    return found


def find_partner(path: str | Path, directory: str | Path, lookup: NameLookup | None = None) -> Path:
    """Find the image of the same name in another folder, whatever its extension and spelling.

    Args:
        path: A file, of which only the name is used.
        directory: Where to look.
        lookup: Remembers what is in the folder, for many calls.

    Raises:
        DataError: There is none, or there are several; the message names them.
    """
    path, directory = Path(path), Path(directory)
    names = (lookup or NameLookup()).spellings(directory)
    stem = stem_key(path)
    found = [
        name
        for suffix in IMAGE_EXTENSIONS
        for name in names.get(stem + suffix, ())
        if (directory / name).is_file()
    ]
    found = [name for name in found if os.path.splitext(name)[0] == path.stem] or found
    if len(found) > 1:
        raise DataError(
            f"{path.name} has several partners in {directory}: {', '.join(map(_spelled, found))}. "
            "Keep one of them there."
        )
    if found:
        return directory / found[0]
    raise DataError(
        f"{path.name} has no partner: there is no {path.stem} with any of the extensions "
        f"{', '.join(IMAGE_EXTENSIONS)} in {directory}."
    )


def _spelled(name: str) -> str:
    """A name, with escapes where two spellings would look the same."""
    return name if name.isascii() else ascii(name)


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def _load(
    path: str | Path, at_least: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Reads a file and turns it as its EXIF tag says.

    Returns:
        The picture, smaller where ``at_least`` and the decoder allow it; its whole height and
        width.
    """
    path = Path(path)
    try:
        # To open a named pipe waits for its other end, and a device may have none.
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"Cannot read {path}: it is not a file.")
        with _open(path) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise _too_large(path, f"{width}x{height} pixels")
            return _decode(picture, at_least)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "a size that no honest file of its kind has") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError...
        raise DataError(f"Cannot read {path}: {_reason(path, error)}.") from error


def _open(path: str | Path) -> Image.Image:
    # Pillow warns of bombs at half its own limit; our own limit is an error, and lower.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=_DECODERS)


def _decode(
    picture: Image.Image, at_least: tuple[int, int] | None
) -> tuple[Image.Image, tuple[int, int]]:
    width, height = picture.size
    hw = (height, width)
    if at_least is not None and picture.format in _REDUCED_BY_DECODER:
        orientation = _orientation(picture)
        factor = reduction(hw[::-1] if orientation >= 5 else hw, at_least)
        # Turned, the squares that are cut off would lie at the left or the top.
        if orientation == 1 or not (width % factor or height % factor):
            picture.draft(None, (max(1, width // factor), max(1, height // factor)))
    picture.load()
    orientation = _orientation(picture)  # a PNG may have it behind the pixels
    if orientation != 1:
        picture = ImageOps.exif_transpose(picture)
    return picture, hw[::-1] if orientation >= 5 else hw


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; from 5 on, height and width change places."""
    value = picture.getexif().get(_EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _too_large(path: Path, size: str) -> DataError:
    return DataError(
        f"Cannot read {path}: it claims {size}, the limit is {MAX_PIXELS / 1e6:.0f} megapixels."
    )


def _reason(path: Path, error: Exception) -> str:
    """Says in words why a file could not be decoded."""
    if isinstance(error, PermissionError):
        return "its permissions forbid it"
    if not os.path.exists(path):  # unlike Path.exists, of names that cannot be, too
        return "the file does not exist"
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is not a picture ({', '.join(IMAGE_EXTENSIONS)} are allowed)"
    return f"the picture is damaged or cut short ({' '.join(str(error).split()) or 'no data'})"


def _is_wide(mode: str) -> bool:
    """Whether a Pillow mode holds one channel of more than 8 bits."""
    return mode == "F" or mode.startswith("I")


def _to_rgb(picture: Image.Image, path: str | Path) -> Image.Image:
    """Brings a picture of any mode to RGB."""
    if _is_wide(picture.mode):
        unit = _wide_to_unit(picture, path)
        picture = Image.fromarray(np.round(255 * unit).astype(np.uint8))  # [0, 1] -> [0, 255]
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
