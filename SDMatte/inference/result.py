"""What a prediction gives: the matte, and pictures made with it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from SDMatte.errors import ConfigError
from SDMatte.images.arrays import as_background
from SDMatte.inference.foreground import estimate_foreground


@dataclass(frozen=True)
class MatteResult:
    """The matte of one object.

    Attributes:
        image: The image, uint8 ``[H, W, 3]``, RGB; gray where it is transparent all through.
        alpha: float32 ``[H, W]`` in [0, 1]: how much of each pixel is the object. Never more than
            the image's own alpha.
        prompt: Short name of the prompt that was used: box, point, mask, trimap or auto.
        opacity: The image's own alpha, float32 ``[H, W]`` in [0, 1]; None where it is opaque.
    """

    image: np.ndarray
    alpha: np.ndarray
    prompt: str
    opacity: np.ndarray | None = None

    @cached_property
    def foreground(self) -> np.ndarray:
        """The object's own colours, uint8 ``[H, W, 3]``; see `estimate_foreground`."""
        if self.opacity is None:
            return estimate_foreground(self.image, self.alpha)
        # Colors are stored as if the image were opaque: where the object is all that shows, they
        # are its own.
        share = np.zeros_like(self.alpha)
        np.divide(self.alpha, self.opacity, out=share, where=self.opacity > 0)
        return estimate_foreground(self.image, share)

    def cutout(self, premultiplied: bool = False, bits: int = 8) -> np.ndarray:
        """Cuts the object out.

        Args:
            premultiplied: Multiply the colours with alpha; what PNG and most programs expect is
                not to.
            bits: 8 or 16 a channel.

        Returns:
            uint8 or uint16 ``[H, W, 4]``, RGBA with the estimated foreground colours.

        Raises:
            ConfigError: ``bits`` is something else.
            DependencyError: pymatting is not installed.
        """
        if bits not in (8, 16):
            raise ConfigError(f"bits is 8 or 16; got {bits!r}.")
        dtype, full = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
        colours = self.foreground * dtype(full // 255)  # [0, 255] -> [0, full]
        if premultiplied:
            colours = np.round(colours * self.alpha[..., None]).astype(dtype)
        alpha = np.round(self.alpha * np.float32(full)).astype(dtype)  # [0, 1] -> [0, full]
        return np.dstack([colours, alpha])

    def composite(self, background: Any) -> np.ndarray:
        """Puts the object on another background.

        Args:
            background: A colour or a picture; see `SDMatte.images.arrays.as_background`.

        Returns:
            uint8 ``[H, W, 3]``.

        Raises:
            DataError: The background is neither.
            DependencyError: pymatting is not installed.
        """
        behind = as_background(background, self.alpha.shape)
        alpha = self.alpha[..., None]
        mixed = alpha * self.foreground + (1 - alpha) * behind
        return np.round(mixed).astype(np.uint8)
