"""Color management: convert pixels of any color profile to sRGB.

All computation is in sRGB, so that images, backgrounds and fills can be mixed, and files are
written in sRGB. Alphas, masks and trimaps are data and are never converted.
"""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from SDMatte.images import warn_once

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
_TOLERANCE = 2  # of 255; sRGB profiles of different vendors differ by this much


def to_srgb(image: Image.Image, name: str | Path) -> Image.Image:
    """Convert an image of any 8-bit mode to sRGB by its embedded profile.

    A profile that is damaged or does not match the image's color space is ignored with a warning.
    The result is RGB, or RGBA with unchanged alpha; or the image itself if no conversion is needed.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "1":
        return image
    has_alpha = image.mode in ("LA", "RGBA", "RGBa", "PA") or "transparency" in image.info
    colors = image.convert("RGBA") if has_alpha else image
    if image.mode in ("LA", "L"):
        colors = colors.convert("L")
    elif colors.mode not in ("CMYK", "LAB"):
        colors = colors.convert("RGB")
    if colors.mode == "L" and profile[16:20] == b"RGB ":  # gray levels of an RGB space
        colors = colors.convert("RGB")
    try:
        transform = _transform(bytes(profile), colors.mode)
    except _ERRORS:
        warn_once(f"{name}: its color profile is damaged or does not fit, and is ignored.")
        return image
    if transform is None:
        return image
    converted = transform.apply(colors)
    if has_alpha:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


def srgb_profile(profile: bytes | None) -> bytes | None:
    """Return the profile for the sRGB version of an image that has ``profile``.

    None if it has none: programs then assume sRGB.
    """
    if not profile:
        return None
    try:
        if _transform(bytes(profile), "RGB") is None:
            return bytes(profile)
    except _ERRORS:
        pass
    return _default_profile()


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from a profile to sRGB; None if the profile is sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if _MODES.get(source.profile.xcolor_space) != mode:
        raise ValueError("The profile does not match the image's color space.")
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode in ("RGB", "L"):
        levels = np.arange(0, 256, 15, dtype=np.uint8)  # 0, ..., 255
        grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        patches = Image.fromarray(grid if mode == "RGB" else levels[None])
        before, after = patches.convert("RGB"), transform.apply(patches)
        if np.abs(np.asarray(before, int) - np.asarray(after)).max() <= _TOLERANCE:
            return None
    return transform


@lru_cache(maxsize=1)
def _default_profile() -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # A fixed creation date, 2000-01-01, so that equal images give equal files.
    profile[24:36] = bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))
    return bytes(profile)
