"""The result of a prediction, and its output images."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from SDMatte.errors import ConfigError
from SDMatte.images.arrays import as_background, read_background
from SDMatte.images.formats import WRITERS
from SDMatte.inference.foreground import estimate_foreground

_SUFFIXES = {  # of outputs by kind and bits; most programs ignore alpha in BMP files
    ("cutout", 8): (".png", ".webp", ".tif", ".tiff"),
    ("cutout", 16): (".png",),
    ("alpha", 8): tuple(WRITERS),
    ("alpha", 16): (".png", ".tif", ".tiff"),
    ("composite", 8): tuple(WRITERS),
}


@dataclass(frozen=True)
class MatteResult:
    """The matte of one object.

    Attributes:
        image: uint8 ``[H, W, 3]``, RGB; mid-gray where the image is fully transparent.
        alpha: float32 ``[H, W]`` in [0, 1], the fraction of each pixel that the object covers.
            Never exceeds the image's own alpha.
        prompt: Short name of the prompt: box, point, mask, trimap or auto; box for a text.
        opacity: The image's own alpha, float32 ``[H, W]`` in [0, 1]; None if it is opaque.
        box: The box found for a text, x0, y0, x1, y1 in pixels; None for other prompts.
        score: The detector's confidence in that box, in [0, 1].
    """

    image: np.ndarray
    alpha: np.ndarray
    prompt: str
    opacity: np.ndarray | None = None
    box: tuple[int, int, int, int] | None = None
    score: float | None = None

    @cached_property
    def foreground(self) -> np.ndarray:
        """The object's own colors, uint8 ``[H, W, 3]``; see `estimate_foreground`."""
        if self.opacity is None:
            return estimate_foreground(self.image, self.alpha)
        # A transparent image stores unmixed colors. Where only the object is visible, they are
        # the object's own.
        fraction = np.zeros_like(self.alpha)
        np.divide(self.alpha, self.opacity, out=fraction, where=self.opacity > 0)
        return estimate_foreground(self.image, fraction)

    def cutout(self, premultiplied: bool = False, bits: int = 8) -> np.ndarray:
        """Return the object on a transparent background, with estimated foreground colors.

        Args:
            premultiplied: Multiply the colors by alpha. PNG and most programs expect colors that
                are not premultiplied.
            bits: 8 or 16 per channel.

        Returns:
            uint8 or uint16 ``[H, W, 4]``, RGBA.

        Raises:
            ConfigError: ``bits`` is neither 8 nor 16.
        """
        if bits not in (8, 16):
            raise ConfigError(f"bits must be 8 or 16; got {bits!r}.")
        dtype, full = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
        colors = self.foreground * dtype(full // 255)  # [0, 255] -> [0, full]
        if premultiplied:
            colors = np.round(colors * self.alpha[..., None]).astype(dtype)
        alpha = np.round(self.alpha * np.float32(full)).astype(dtype)  # [0, 1] -> [0, full]
        return np.dstack([colors, alpha])

    def composite(self, background: Any) -> np.ndarray:
        """Return the object on another background.

        Args:
            background: A color or an image; see `SDMatte.images.arrays.as_background`.

        Returns:
            uint8 ``[H, W, 3]``, RGB.

        Raises:
            DataError: The background is neither a color nor a readable image.
        """
        behind = as_background(background, self.alpha.shape)
        alpha = self.alpha[..., None]
        return np.round(alpha * self.foreground + (1 - alpha) * behind).astype(np.uint8)


@dataclass
class OutputSettings:
    """What to write for a matte, and in which format.

    Attributes:
        kind: ``"cutout"``, RGBA with estimated foreground colors; ``"alpha"``, the matte in gray;
            or ``"composite"``, the object on another background.
        background: Background of a composite, a color or an image; read immediately, see
            `read_background`.
        premultiplied: Whether the colors of a cutout are multiplied by alpha.
        bits: Bits per channel: 8, or 16 for ``"alpha"`` as PNG or TIFF and ``"cutout"`` as PNG.
        suffix: Suffix, and thus format, of files whose names are not given.

    Raises:
        ConfigError: A setting is invalid, or two of them are incompatible.
        DataError: The background is neither a color nor a readable image.
    """

    kind: str = "cutout"
    background: Any = None
    premultiplied: bool = False
    bits: int = 8
    suffix: str = ".png"

    def __post_init__(self) -> None:
        """Check the settings."""
        if (self.kind, self.bits) not in _SUFFIXES:
            raise ConfigError(
                f"The output must be a cutout or alpha with 8 or 16 bits, or a composite with 8; "
                f"got {self.kind!r} with {self.bits!r}."
            )
        if self.premultiplied and self.kind != "cutout":
            raise ConfigError(f"Only a cutout can be premultiplied, not {self.kind!r}.")
        self.check_suffix(self.suffix)
        if self.kind == "composite":
            self.background = read_background(self.background)

    def check_suffix(self, suffix: str) -> None:
        """Ensure that a file format can store the output.

        Raises:
            ConfigError: The format cannot store it.
        """
        allowed = _SUFFIXES[self.kind, self.bits]
        if suffix.lower() not in allowed:
            raise ConfigError(
                f"A {suffix} file cannot store the output ({self.kind}, {self.bits} bits per "
                f"channel): use one of {', '.join(allowed)}."
            )

    def render(self, result: MatteResult) -> np.ndarray:
        """Return the output as an array for `write_image`."""
        if self.kind == "cutout":
            return result.cutout(self.premultiplied, self.bits)
        if self.kind == "composite":
            return result.composite(self.background)
        if self.bits == 16:
            return np.round(result.alpha * 65535).astype(np.uint16)  # [0, 1] -> [0, 65535]
        return result.alpha
