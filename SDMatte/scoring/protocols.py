"""How a prediction becomes the array that is scored, and how a pair is scored.

Two protocols, and every number says which of them it follows:

* ``official``: what the published evaluation does. The prediction times 255 is resized to the
  picture's size and truncated to 8 bits; files and scores both come from those bytes.
* ``corrected``: what it should have done. The prediction stays floating, only files are rounded,
  and the connectivity error leaves the background out.

The truth is the alpha at its original size in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SDMatte.errors import ConfigError, DataError
from SDMatte.images.io import read_alpha, read_trimap, trimap_levels
from SDMatte.images.resize import resize_alpha
from SDMatte.scoring.metrics import METRICS

DISPLAY_SCALE = {"MSE": 1000.0, "MAD": 1000.0}
"""Factors of the command line's tables; everything stored or returned is raw."""


@dataclass(frozen=True)
class Protocol:
    """A way to score.

    Attributes:
        name: Also names the definition of the metrics, see `SDMatte.scoring.metrics`.
        eight_bit: Whether predictions are truncated to 8 bits and the truth is taken in 8 bits.
        description: One line for reports.
    """

    name: str
    eight_bit: bool
    description: str


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            "official",
            eight_bit=True,
            description="as published: predictions truncated to 8 bits, "
            "Conn counts the background as a component",
        ),
        Protocol(
            "corrected",
            eight_bit=False,
            description="floating predictions, Conn leaves the background out",
        ),
    )
}


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Looks a protocol up by name.

    Raises:
        ConfigError: There is no such protocol; the message lists the names there are.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ConfigError(f"Unknown protocol {protocol!r}; known are {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[protocol]


def finish_alpha(
    pred: np.ndarray, hw: tuple[int, int], protocol: str | Protocol = "official"
) -> np.ndarray:
    """Resize a prediction as a protocol does, see `SDMatte.images.resize.resize_alpha`.

    Returns:
        ``[H, W]``: uint8 in ``official``, float32 in [0, 1] in ``corrected``
        (`SDMatte.images.io.write_image` rounds it for the file).
    """
    return resize_alpha(pred, hw, get_protocol(protocol).eight_bit)


def as_scored(alpha: np.ndarray, protocol: str | Protocol) -> np.ndarray:
    """A matte read from a file, as the protocol takes it.

    Args:
        alpha: float32 ``[H, W]`` in [0, 1] as `SDMatte.images.io.read_alpha` gives it.
        protocol: Name or protocol.

    Returns:
        uint8 in ``official`` (exact for 8-bit files, rounded for deeper ones), else ``alpha``.
    """
    if not get_protocol(protocol).eight_bit:
        return alpha
    return np.rint(alpha * np.float32(255)).astype(np.uint8)  # [0, 1] -> [0, 255]


def score_pair(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    protocol: str | Protocol = "official",
) -> dict[str, float]:
    """All five metrics of one picture, in raw units.

    Args:
        pred: What `finish_alpha` or `as_scored` gave, ``[H, W]``.
        true: True alpha ``[H, W]``, 8-bit or floating in [0, 1].
        trimap: uint8 ``[H, W]``; if given, only its pixels of value 128 count.
        protocol: Name or protocol.

    Returns:
        ``{"MSE", "MAD", "SAD", "Grad", "Conn"}``, MSE and MAD not multiplied by 1000.

    Raises:
        ValueError: See `SDMatte.scoring.metrics.mse`.
    """
    name = get_protocol(protocol).name
    return {key: metric(pred, true, trimap, protocol=name) for key, metric in METRICS.items()}


def read_partners(
    pred: np.ndarray,
    alpha_path: str | Path,
    trimap_path: str | Path | None = None,
    protocol: str | Protocol = "official",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads what a matte is scored against.

    Args:
        pred: As for `score_pair`.
        alpha_path: File of the true alpha.
        trimap_path: File of the trimap, if only its unknown pixels are to count.
        protocol: Name or protocol.

    Returns:
        The truth and the trimap (or None), as `score_pair` takes them.

    Raises:
        DataError: A file cannot be read, or differs in size from the prediction; or a trimap has
            other values than `SDMatte.images.io.trimap_levels` takes.
    """
    true = as_scored(read_alpha(alpha_path), protocol)
    _check_size(pred, true, "true alpha", alpha_path)
    if trimap_path is None:
        return true, None
    trimap = trimap_levels(read_trimap(trimap_path), f"The trimap {trimap_path}")
    _check_size(pred, trimap, "trimap", trimap_path)
    return true, trimap


def _check_size(pred: np.ndarray, other: np.ndarray, what: str, path: str | Path) -> None:
    if pred.shape != other.shape:
        (h, w), (other_h, other_w) = pred.shape, other.shape
        raise DataError(f"The prediction is {w}x{h}, its {what} {path} is {other_w}x{other_h}.")


def to_display(scores: dict[str, float]) -> dict[str, float]:
    """Raw scores in the units of the command line's tables, see `display_name`."""
    return {key: value * DISPLAY_SCALE.get(key, 1) for key, value in scores.items()}


def display_name(metric: str) -> str:
    """The heading of a metric that went through `to_display`, such as ``"MSE x1000"``."""
    return f"{metric} x{DISPLAY_SCALE[metric]:.0f}" if metric in DISPLAY_SCALE else metric
