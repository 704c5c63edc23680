"""The metadata that a cutout keeps: EXIF data, resolution and color profile."""

from pathlib import Path
from typing import Any

from PIL import Image

from SDMatte.images import warn_once
from SDMatte.images.color import srgb_profile

ORIENTATION, _EXIF, _GPS = 0x0112, 0x8769, 0x8825
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _INCH = 0x011A, 0x011B, 0x0128, 2
# Description, make, model, software, date, artist, host, rating, Windows fields, copyright; without
# the tags that describe the storage of a TIFF or a thumbnail.
EXIF_KEPT = (270, 271, 272, 305, 306, 315, 316, 18246, *range(40091, 40096), 33432)
# Maker notes contain offsets into the old file and whole previews.
_COLOR_SPACE, _WIDTH, _HEIGHT, _INTEROP, _MAKER_NOTE = 0xA001, 0xA002, 0xA003, 0xA005, 0x927C
_SRGB = 1
_LARGEST_DPI = 65535


def kept_metadata(image: Image.Image, path: Path) -> dict[str, Any]:
    """Return the metadata of an open image to keep; see `SDMatte.images.decode.read_metadata`."""
    kept: dict[str, Any] = {}
    if profile := srgb_profile(image.info.get("icc_profile")):
        kept["icc_profile"] = profile
    try:
        if image.format in ("TIFF", None):
            source = image.getexif()
        else:
            source = Image.Exif()  # `getexif` would decode a PNG without EXIF
            source.load(image.info.get("exif") or b"")
        dpi = tuple(float(value) for value in image.info.get("dpi", ()))
        # For these formats, Pillow sets a default resolution if the file has none.
        is_stated = image.format not in ("JPEG", "MPO", "TIFF") or (
            _X_RESOLUTION in source or image.info.get("jfif_unit") in (1, 2)
        )
        if is_stated and len(dpi) == 2 and all(0 < value <= _LARGEST_DPI for value in dpi):
            is_transposed = source.get(ORIENTATION, 1) in (5, 6, 7, 8)
            kept["dpi"] = dpi[::-1] if is_transposed else dpi
        if exif := _kept_exif(source, kept.get("dpi")):
            kept["exif"] = exif
    except Exception:  # a wrong type, an offset beyond the end, a division by zero...
        warn_once(f"{path}: its EXIF data are damaged and are not kept.")
    return kept


def _kept_exif(source: Image.Exif, dpi: tuple[float, float] | None) -> bytes | None:
    kept = Image.Exif()
    kept.update({tag: source[tag] for tag in EXIF_KEPT if tag in source})
    for part in (_EXIF, _GPS):
        if part in source:
            tags = dict(source.get_ifd(part))
            for tag in (_WIDTH, _HEIGHT, _INTEROP, _MAKER_NOTE):
                tags.pop(tag, None)
            if _COLOR_SPACE in tags:
                tags[_COLOR_SPACE] = _SRGB
            kept.get_ifd(part).update(tags)
    if not kept and not kept.get_ifd(_EXIF) and not kept.get_ifd(_GPS):
        return None
    if dpi is not None:
        kept.update({_X_RESOLUTION: dpi[0], _Y_RESOLUTION: dpi[1], _RESOLUTION_UNIT: _INCH})
    return kept.tobytes()
