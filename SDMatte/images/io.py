"""Images from and to disk: every kind of file that a matting set holds, one kind of error.

Whatever is wrong with a file (missing, empty, cut short, not an image, too large) ends in a
`SDMatte.errors.DataError` of one sentence that names it (data/README.md, step 1).
"""

import logging
import os
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from SDMatte.errors import DataError, OutputError
from SDMatte.images.color import to_srgb
from SDMatte.images.decode import bits_per_channel, reduction
from SDMatte.images.decode import load_image as _load
from SDMatte.images.formats import IMAGE_EXTENSIONS, WRITERS
from SDMatte.images.metadata import says_more_than_resolution
from SDMatte.images.png import encode_16_bit_png
from SDMatte.runtime.files import NameLookup, list_error, replace_file, stem_key

logger = logging.getLogger(__name__)

_LARGEST_JPEG_EXIF = 65_533
_ALMOST_GRAY = 16
"""Largest difference between the channels of a palette that counts as gray."""


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


def read_image_and_alpha(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image with its transparency, however the file stores that.

    Args:
        path: As for `read_image`. Alpha may be a channel of its own (premultiplied or not), or
            the transparent entries of a palette, or a transparent gray level or color.

    Returns:
        uint8 ``[H, W, 3]``, RGB, not premultiplied; and float32 ``[H, W]`` in [0, 1], or None
        where the image is opaque. Of an alpha of 16 bits the upper 8 count, rounded down.

    Raises:
        DataError: The file cannot be read as an image.
    """
    picture, _ = _load(path)
    picture = without_premultiplied_gray(picture)
    bits = bits_per_channel(path) if picture.has_transparency_data else 8
    return np.array(_to_rgb(picture, path)), alpha_channel(picture, bits)


def without_premultiplied_gray(picture: Image.Image) -> Image.Image:
    """Convert mode La, which Pillow converts to LA alone, and return others as they are."""
    return picture.convert("LA") if picture.mode == "La" else picture


def alpha_channel(picture: Image.Image, bits: int = 8) -> np.ndarray | None:
    """Return the alpha of a Pillow image of any mode.

    Args:
        picture: The image.
        bits: Bits per channel in its file; Pillow brings channels to 8 bits, but leaves a
            transparent gray level or color as it is in the file.

    Returns:
        float32 ``[H, W]`` in [0, 1], or None where the image is opaque.
    """
    if not picture.has_transparency_data:
        return None
    key = picture.info.get("transparency")
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        alpha = np.array(picture.getchannel(len(picture.getbands()) - 1))
    elif picture.mode == "P":
        alpha = np.array(picture.convert("RGBA").getchannel("A"))
    else:
        values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
        if picture.mode == "L" and bits < 8:
            key = key * 255 // (2**bits - 1)
        elif picture.mode == "RGB" and bits == 16:
            key = [level >> 8 for level in key]
        same = values == key  # [H, W], or [H, W, 3]
        alpha = np.where(same.all(axis=2) if same.ndim == 3 else same, 0, 255).astype(np.uint8)
    if alpha.min(initial=255) == 255:
        return None
    # Rounded down, 16 bits never allow a matte more than they said.
    levels = np.arange(256) * (256 / 65535 if bits == 16 else 1 / 255)  # [0, 255] -> [0, 1]
    levels[-1] = 1
    return levels.astype(np.float32)[alpha]


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
    """Read an alpha matte, however it was stored.

    Gray files of 1, 8, 16 or 32 bits are scaled to [0, 1]; color files count by their luminance
    (a gray image stored as RGB, CMYK or with a palette). Of a file with an alpha channel that
    channel is the matte, unless it is opaque all over: then the colors are. Where colors or an
    alpha channel have 16 bits, the upper 8 count.

    Files in another range are recognized, with one warning a folder: gray values of 0 and 1 of
    any depth, 8 bits in a file of 16 (the largest value is 255), integers in a floating-point
    file, and one object by its index in a palette of colors.

    Args:
        path: The image file.

    Returns:
        float32 ``[H, W]`` in [0, 1].

    Raises:
        DataError: The file cannot be read as an image, or holds several objects by index.
    """
    matte = read_matte(path)
    return matte.astype(np.float32) / 255 if matte.dtype == np.uint8 else matte  # -> [0, 1]


def read_matte(path: str | Path) -> np.ndarray:
    """Read an alpha matte like `read_alpha`, but leave 8 bits as they are.

    Returns:
        ``[H, W]``: uint8 of a file of 8 bits or fewer, else float32 in [0, 1].

    Raises:
        DataError: See `read_alpha`.
    """
    picture, _ = _load(path)
    if _is_wide(picture.mode):
        return _wide_to_unit(picture, path)
    labels = _palette_labels(picture)
    if labels is not None:
        if labels.max() != labels.min(where=labels > 0, initial=labels.max()):
            raise DataError(
                f"Cannot read {path} as an alpha: it holds several objects by their index "
                f"({list_ids(labels)}). Write the alpha of one, gray, from 0 to 255."
            )
        _note_range(path, "the object is the index in its palette that is not the background's")
        return np.where(labels > 0, 255, 0).astype(np.uint8)
    gray = _gray(picture)
    if gray.max(initial=0) == 1:
        _note_range(path, "its largest value is 1, so it is read as 0 and 1")
        return gray * np.uint8(255)  # {0, 1} -> {0, 255}
    return gray


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask as it is stored: gray levels, 0 and 1, ids, indices in a palette, or colors.

    Args:
        path: The image file.

    Returns:
        ``[H, W]``: integers, or float32 of a floating-point file; 0 is the background. Of a file
        with transparency its alpha, of colors the brightest channel.

    Raises:
        DataError: The file cannot be read as an image.
    """
    picture, _ = _load(path)
    if _is_wide(picture.mode):
        return np.array(picture)
    labels = _palette_labels(picture)
    if labels is not None:
        return labels
    if picture.mode == "L":
        return np.array(picture)
    alpha = alpha_channel(picture)
    if alpha is not None:
        return np.rint(alpha * 255).astype(np.uint8)  # [0, 1] -> [0, 255]
    return np.array(_to_rgb(without_premultiplied_gray(picture), path)).max(axis=2)


def read_trimap(path: str | Path) -> np.ndarray:
    """Read a trimap: 0 background, 128 unknown, 255 foreground.

    Files of 0, 1 and 2 (gray or indices in a palette) are scaled to that; other values are kept,
    see `trimap_levels`.

    Args:
        path: The image file.

    Returns:
        uint8 ``[H, W]``.

    Raises:
        DataError: The file cannot be read as an image, or its only values are 0 and 1.
    """
    picture, _ = _load(path)
    labels = _palette_labels(picture)
    if labels is not None:
        values = labels
    elif _is_wide(picture.mode):
        values = np.array(picture)
        top = values.max(initial=0)
        if picture.mode == "F" and top != 2 or top > 255:
            values = np.round(255 * _wide_to_unit(picture, path))  # -> [0, 255]
        values = values.astype(np.uint8)
    else:
        values = _gray(picture)
    if values.max(initial=0) in (1, 2):
        values = trimap_levels(values, f"The trimap {path}")
    return values


def trimap_levels(trimap: np.ndarray, name: str = "The trimap") -> np.ndarray:
    """Return the three levels of a trimap; the one check for prompts, files and scores.

    Args:
        trimap: ``[H, W]``: 0 background, 127 or 128 unknown, 255 foreground; or 0, 1, 2; or
            floating point, 0, .5, 1.
        name: Begins the message.

    Returns:
        uint8 ``[H, W]`` of 0, 128, 255.

    Raises:
        DataError: It holds other values, or 0 and 1 alone, which may mean either of two things.
    """
    top = trimap.max(initial=0)
    is_unit = trimap.dtype.kind == "f" and top <= 1
    unknown = (0.5,) if is_unit else (1,) if top <= 2 else (127, 128)
    full = 1 if is_unit else 2 if top <= 2 else 255
    levels = np.zeros(trimap.shape, np.uint8)
    levels[np.isin(trimap, unknown)] = 128
    levels[trimap == full] = 255
    others = trimap[(levels == 0) & (trimap != 0)]
    if others.size:
        raise DataError(
            f"{name} holds the value {others[0]:g}. Allowed are 0 (background), 128 or 127 "
            f"(unknown) and 255 (foreground); or 0, 1, 2; or floating point, 0, 0.5, 1."
        )
    if top == 1 and not is_unit:
        raise DataError(
            f"{name} holds 0 and 1 alone, which may stand for unknown or for foreground: write "
            f"0 (background), 128 (unknown) and 255 (foreground)."
        )
    return levels


def list_ids(labels: np.ndarray, most: int = 8) -> str:
    """Return the ids of a label map, without the background's 0, as they stand in a message."""
    ids = [f"{label:g}" for label in np.unique(labels[labels != 0])[: most + 1].tolist()]
    return ", ".join(ids if len(ids) <= most else [*ids[:most], "..."])


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
    metadata = dict(metadata or {})
    if kind == "JPEG" and len(metadata.get("exif", b"")) > _LARGEST_JPEG_EXIF:
        del metadata["exif"]
    if kind == "TIFF" and says_more_than_resolution(metadata.get("exif", b"")):
        options = {}  # libtiff, which compresses, does not write these; Pillow's own encoder does
    try:
        with replace_file(path) as temporary:
            if array.dtype == np.uint16 and array.ndim == 3:
                temporary.write_bytes(encode_16_bit_png(array, metadata))
            else:
                Image.fromarray(array).save(temporary, format=kind, **options, **metadata)
    except ValueError as error:  # of a WebP with too many pixels
        raise OutputError(f"Cannot write {path}: {error}.") from error
    return path


def check_suffix(path: Path) -> None:
    """Ensure that `write_image` knows the format of a file.

    Raises:
        DataError: It does not.
    """
    if path.suffix.lower() not in WRITERS:
        raise DataError(f"Cannot write {path}: the suffix must be one of {', '.join(WRITERS)}.")


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
    """Scale a 16-bit, 32-bit or floating-point gray image to float32 in [0, 1]."""
    values = np.asarray(picture, dtype=np.float32)
    top, low = (float(values.max()), float(values.min())) if values.size else (0.0, 0.0)
    expected = 1 if picture.mode == "F" else 65535
    limit = expected
    if low >= 0 and top > 0:
        if picture.mode != "F" and top in (1, 255):
            limit = int(top)
        # Other fractions above 1 are what a filter that overshoots leaves, not another range.
        elif picture.mode == "F" and 1 < top <= 65535 and (values == np.rint(values)).all():
            limit = 255 if top <= 255 else 65535
    if not (0 <= low and top <= limit):
        raise DataError(
            f"Cannot read {path}: its values go from {low:g} to {top:g}, a gray image of mode "
            f"{picture.mode} may hold 0 to {expected:g}."
        )
    if limit != expected:
        _note_range(path, f"its largest value is {top:g}, so it is read as 0 to {limit}")
    return values / np.float32(limit)  # [0, limit] -> [0, 1]


def _gray(picture: Image.Image) -> np.ndarray:
    """Take the matte out of an 8-bit image of any mode: uint8 ``[H, W]``."""
    if picture.mode == "L":
        return np.array(picture)
    picture = without_premultiplied_gray(picture)
    has_alpha = picture.mode in ("LA", "RGBA", "RGBa", "PA") or (
        "transparency" in picture.info and picture.mode in ("1", "P", "RGB")
    )
    if has_alpha:
        channel = np.array(picture.convert("RGBA").getchannel("A"))
        if (channel < 255).any():
            return channel
    if picture.mode not in ("1", "RGB"):
        picture = picture.convert("RGB")
    return np.array(picture.convert("L"))


def _palette_labels(picture: Image.Image) -> np.ndarray | None:
    """Return the indices of an image with a palette of colors, which stand for objects.

    Returns:
        uint16 ``[H, W]``, 0 where the color is black, or without black where the index is 0; the
        void of VOC, index 255, is background, too. None of any other image: where the palette is
        gray or has transparency, those tell more than the indices.
    """
    if picture.mode != "P" or picture.has_transparency_data:
        return None
    labels = np.array(picture).astype(np.uint16)
    used = np.flatnonzero(np.bincount(np.array(picture).ravel(), minlength=256))
    colors = np.zeros((256, 3), int)
    palette = np.reshape(picture.getpalette("RGB"), (-1, 3))
    colors[: len(palette)] = palette
    if np.ptp(colors[used], axis=1).max(initial=0) <= _ALMOST_GRAY:
        return None
    black = [index for index in used if not colors[index].any()]
    names = np.arange(256, dtype=np.uint16)
    if black and 0 not in black:
        names[0] = 256  # an object, although its index is that of most backgrounds
    names[black] = 0
    if len(set(names[used]) - {0, 255}):
        names[255] = 0
    return names[labels]


_noted: set[tuple[Path, str]] = set()


def _note_range(path: str | Path, reading: str) -> None:
    """Warn of how a file's values are read, once a folder: data sets have many such files."""
    note = Path(path).parent, reading
    if note not in _noted:
        _noted.add(note)
        logger.warning("%s: %s (and others of its folder likewise).", path, reading)


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
