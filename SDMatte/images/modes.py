"""Convert Pillow images of any mode to arrays: colors, alpha, gray levels and labels."""

from pathlib import Path

import numpy as np
from PIL import Image

from SDMatte.errors import DataError
from SDMatte.images import warn_once
from SDMatte.images.color import to_srgb

_ALMOST_GRAY = 16
"""Largest difference between the channels of a palette that still counts as gray."""


def to_rgb(image: Image.Image, name: str | Path) -> Image.Image:
    """Convert an image of any profile and any mode but La to sRGB in mode RGB; drop its alpha."""
    if is_wide(image):
        profile = image.info.get("icc_profile")
        unit = wide_to_unit(image, name)
        image = Image.fromarray(np.round(255 * unit).astype(np.uint8))  # [0, 1] -> [0, 255]
        image.info["icc_profile"] = profile
    image = to_srgb(image, name)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about a direct conversion to RGB
    return image if image.mode == "RGB" else image.convert("RGB")


def alpha_channel(image: Image.Image) -> np.ndarray | None:
    """Return the alpha of an image of any mode but La, uint8 ``[H, W]``; None if it is opaque.

    Alpha may be stored as a channel, in the palette, or as a transparent level or color.
    """
    if not image.has_transparency_data:
        return None
    if image.mode in ("RGBA", "RGBa", "LA", "PA"):
        alpha = np.array(image.getchannel(len(image.getbands()) - 1))
    elif image.mode == "P":
        alpha = np.array(image.convert("RGBA").getchannel("A"))
    else:
        # Pillow converts pixels to 8 bits, but not the transparent level or color.
        key, bits = image.info["transparency"], image.info.get("bits", 8)
        values = np.asarray(image.convert("L") if image.mode == "1" else image)
        if image.mode == "1":
            key = 255 if key else 0
        elif image.mode == "L" and bits < 8:
            key = key * 255 // (2**bits - 1)
        elif image.mode == "RGB" and bits == 16:
            key = [level >> 8 for level in key]
        same = values == key  # [H, W] or [H, W, 3]
        same = same.all(axis=2) if same.ndim == 3 else same
        alpha = np.where(same, 0, 255).astype(np.uint8)
    return None if alpha.min(initial=255) == 255 else alpha


def is_wide(image: Image.Image) -> bool:
    """Return whether an image has one channel of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def wide_to_unit(image: Image.Image, name: str | Path) -> np.ndarray:
    """Scale a 16-bit, 32-bit or floating-point gray image to float32 in [0, 1].

    Raises:
        DataError: The range of its values is not recognized.
    """
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    expected = 1 if image.mode == "F" else 65535
    limit = expected
    if image.mode != "F":
        limit = int(high) if high in (1, 255) else expected
    # Non-integer values above 1 come from a filter that overshoots, not from another range.
    elif 1 < high <= 65535 and (values == np.rint(values)).all():
        limit = 255 if high <= 255 else 65535
    if not (low >= 0 and high <= limit):  # also if a value is NaN
        raise DataError(
            f"Cannot read {name}: its values range from {low:g} to {high:g}; a gray image of mode "
            f"{image.mode} must be in 0 to {expected:g}."
        )
    if limit != expected:
        warn_range(name, f"its largest value is {high:g}, so it is read as 0 to {limit}")
    return values / np.float32(limit)  # [0, limit] -> [0, 1]


def gray(image: Image.Image) -> np.ndarray:
    """Return the matte in an 8-bit image: its alpha, or the luminance if it is opaque.

    Returns:
        uint8 ``[H, W]``.
    """
    if image.mode == "L":
        return np.array(image)
    alpha = alpha_channel(image)
    if alpha is not None:
        return alpha
    if image.mode not in ("1", "RGB"):
        image = image.convert("RGB")
    return np.array(image.convert("L"))


def palette_labels(image: Image.Image) -> np.ndarray | None:
    """Return the indices of an image with a color palette, which label objects.

    Returns:
        uint16 ``[H, W]``. Background is 0: black, or index 0 if no color is black, and index 255,
        the void label of VOC. None for images without a palette, and for gray or transparent
        palettes, which store mattes.
    """
    if image.mode != "P" or image.has_transparency_data:
        return None
    labels = np.array(image).astype(np.uint16)
    used = np.unique(labels)
    colors = np.zeros((256, 3), int)
    palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
    colors[: len(palette)] = palette
    if np.ptp(colors[used], axis=1).max(initial=0) <= _ALMOST_GRAY:
        return None
    black = [index for index in used if not colors[index].any()]
    ids = np.arange(256, dtype=np.uint16)
    if black and 0 not in black:
        ids[0] = 256  # an object here, although index 0 is the background in most files
    ids[black] = 0
    if len(set(ids[used]) - {0, 255}):
        ids[255] = 0
    return ids[labels]


def warn_range(name: str | Path, reading: str) -> None:
    """Warn about an unusual range of values, once per folder."""
    warn_once(f"{name}: {reading} (logged once per folder).", (Path(name).parent, reading))
