"""Colour management: whatever profile an image has, its pixels become sRGB.

All is computed in sRGB, so that an image, its background and a fill can be mixed, and what is
written is sRGB for all of its pixels. Alphas, masks and trimaps are data and never come here.
"""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from SDMatte.images import warn_once

_MODES = {"RGB ": ("RGB",), "GRAY": ("L",), "CMYK": ("CMYK",), "Lab ": ("LAB",)}
_FAULTS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
_TOLERANCE = 2  # of 255: what the sRGB profiles of different makers differ by


def to_srgb(image: Image.Image, name: str | Path) -> Image.Image:
    """Convert an image to sRGB by its embedded profile.

    A profile that is damaged, or of other colours than the image, is ignored with a warning.

    Args:
        image: Of any 8-bit mode; without a profile it is taken to be sRGB.
        name: What a warning calls it.

    Returns:
        RGB, or RGBA with its alpha as it was; the image itself where nothing is to convert.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "1":
        return image
    has_alpha = image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info
    colours = image.convert("RGBA") if has_alpha else image
    if image.mode in ("LA", "La", "L"):
        colours = colours.convert("L")
    elif colours.mode not in ("CMYK", "LAB"):
        colours = colours.convert("RGB")
    if colours.mode == "L" and profile[16:20] == b"RGB ":
        colours = colours.convert("RGB")  # gray values of an RGB space: all three are the same
    try:
        transform = _transform(bytes(profile), colours.mode)
    except _FAULTS:
        warn_once(f"{name}: its colour profile is damaged or does not fit, and is ignored.")
        return image
    if transform is None:
        return image
    managed = transform.apply(colours)
    if has_alpha:
        managed.putalpha(image.convert("RGBA").getchannel("A"))
    return managed


def srgb_profile(profile: bytes | None) -> bytes | None:
    """Return the profile for the sRGB version of an image that has ``profile``.

    None if it has none: without one, all programs take colours to be sRGB.
    """
    if not profile:
        return None
    try:
        if _transform(bytes(profile), "RGB") is None:
            return bytes(profile)
    except _FAULTS:
        pass
    return _own_profile()


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Make the transform from a profile to sRGB; None where it changes nothing to speak of."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if mode not in _MODES.get(source.profile.xcolor_space, ()):
        raise ValueError("The profile is of other colours than the image.")
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode in ("RGB", "L"):
        levels = np.arange(0, 256, 15, dtype=np.uint8)  # 0 and 255 are among them
        grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        patches = Image.fromarray(grid if mode == "RGB" else levels[None])
        before, after = patches.convert("RGB"), transform.apply(patches)
        if np.abs(np.asarray(before, int) - np.asarray(after)).max() <= _TOLERANCE:
            return None
    return transform


@lru_cache(maxsize=1)
def _own_profile() -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # Of now; equal images shall be equal files, so it becomes the first of January 2000.
    profile[24:36] = bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))
    return bytes(profile)
