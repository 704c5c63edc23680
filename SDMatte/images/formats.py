"""Supported image formats, and the names of those that are not supported."""

import os
from typing import Any

IMAGE_EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif", ".gif", ".jfif", ".hif"),
)
"""Suffixes (lower case) of image files; of files with the same stem, the first one wins."""

WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 4}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: keep colors under alpha 0
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".bmp": ("BMP", {}),
}
"""Pillow's format and options by suffix (lower case)."""

# No other decoder is used, whatever the suffix: Pillow's EPS decoder starts Ghostscript.
PILLOW_DECODERS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")  # JPEG includes MPO

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files."""

_SUPPORTED = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", *TIFF_SIGNATURES)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")

# By suffix, since most are TIFF files of which Pillow would read the thumbnail.
_RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)

_RAW, _VIDEO = "a camera raw file", "a video"
_ADVICE = {
    _RAW: "develop it to PNG, JPEG or TIFF first",
    _VIDEO: "extract its frames as images first",
}

_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"II\xbc", "a JPEG XR image"),
    (b"8BPS", "a Photoshop file"),
    (b"gimp xcf", "a GIMP file"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"#?RGBE", "a Radiance HDR image"),
    (b"\0\0\1\0", "an icon"),
    (b"DDS ", "a DDS texture"),
    (b"qoif", "a QOI image"),
    (b"SIMPLE  =", "a FITS image"),
    *((b"P%d%c" % (i, space), "a Netpbm image") for i in range(1, 8) for space in b" \t\r\n"),
    (b"Pf\n", "a PFM image"),
    (b"PF\n", "a PFM image"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1a\x45\xdf\xa3", _VIDEO),
    (b"\0\0\1\xba", _VIDEO),
    *((start, _RAW) for start in (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR")),
)


def is_heif(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` is a HEIC or another HEIF image."""
    brands = _brands(head)
    return any(b in _HEIF_BRANDS for b in brands) and not any(b in _AVIF_BRANDS for b in brands)


def is_supported(head: bytes) -> bool:
    """Return whether a file that starts with ``head`` has a supported format."""
    brands = (*_HEIF_BRANDS, *_AVIF_BRANDS)
    return head.startswith(_SUPPORTED) or any(brand in brands for brand in _brands(head))


def describe_unsupported(name: str, head: bytes) -> str | None:
    """Name the known but unsupported format of a file, and how to convert it.

    Args:
        name: The file's name; camera raw files are recognized by their suffix.
        head: Its first bytes, up to 4096.

    Returns:
        The end of a sentence that starts with the file's name; None for other files.
    """
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; fetch the file by `git lfs pull`"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, probably from a failed download; download the image again"
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text:
        kind: str | None = "an SVG drawing"
    else:
        kind = _kind(name, head)
    if kind is None:
        return None
    advice = _ADVICE.get(kind, "convert it to PNG, JPEG or TIFF first")
    return f"it is {kind}, which is not supported; {advice}"


def _kind(name: str, head: bytes) -> str | None:
    brands = _brands(head)
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _RAW_SUFFIXES or head[8:10] == b"CR":
        is_raw = brands or head.startswith((b"II", b"MM", b"FUJI", b"\0MRM", b"FOVb"))
        return _RAW if is_raw else None
    if head[128:132] == b"DICM":
        return "a DICOM image"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return _VIDEO
    if brands and not is_supported(head):
        return _RAW if brands[0] == b"crx " else _VIDEO
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return _VIDEO
    kind = next((kind for start, kind in _SIGNATURES if head.startswith(start)), None)
    if kind is None and suffix == ".tga" and not is_supported(head):  # Targa has no signature
        return "a Targa image"
    return kind


def _brands(head: bytes) -> list[bytes]:
    """Return the brands of an ISO media file (HEIF, AVIF, MP4, ...), the major one first."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[i : i + 4] for i in range(16, end - 3, 4))]
