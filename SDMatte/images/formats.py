"""Supported image formats."""

import os
from typing import Any

IMAGE_EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif", ".gif", ".jfif", ".hif"),
)
"""Suffixes of image files in lower case; the first wins if files have the same stem."""

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

# Recognized by suffix: most are TIFF files, of which Pillow would read only the thumbnail.
_RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)


def describe_unsupported(name: str, head: bytes) -> str | None:
    """Return why a file that may look like an image is not supported; None for other files.

    ``head`` holds its first bytes. The result completes a sentence that starts with its name.
    """
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, probably from a failed download; download the image again"
    is_raw = os.path.splitext(name)[1].lower() in _RAW_SUFFIXES or head[8:10] == b"CR"
    if is_raw and head.startswith((b"II", b"MM")):
        return (
            "it is a camera raw file, which is not supported; develop it to PNG, JPEG or TIFF first"
        )
    return None
