"""The two evaluation protocols: how predictions and truths are converted for scoring.

* ``official`` reproduces the published evaluation: the prediction times 255 is resized to the
  image's size and truncated to 8 bits, for the file and for the scores.
* ``corrected`` keeps the prediction in floating point, rounds only the file, and excludes the
  background from the connectivity error.

Both compare with the true alpha at its original size.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SDMatte.errors import ConfigError, DataError
from SDMatte.images.io import read_alpha, read_trimap, trimap_levels
from SDMatte.scoring.metrics import METRICS


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol."""

    name: str  # also selects the definition of the metrics, see SDMatte.scoring.metrics
    eight_bit: bool  # whether predictions are truncated to 8 bits and truths are read with 8 bits
    description: str  # one line for reports

    def as_scored(self, alpha: np.ndarray) -> np.ndarray:
        """Convert an alpha from a file, float32 ``[H, W]`` in [0, 1], to the array to score.

        With ``eight_bit``, the result is uint8: exact for 8-bit files, rounded for deeper ones.
        """
        if not self.eight_bit:
            return alpha
        return np.rint(alpha * np.float32(255)).astype(np.uint8)  # [0, 1] -> [0, 255]


PROTOCOLS = {
    "official": Protocol(
        "official",
        eight_bit=True,
        description="as published: predictions truncated to 8 bits, "
        "Conn counts the background as a component",
    ),
    "corrected": Protocol(
        "corrected",
        eight_bit=False,
        description="floating-point predictions, Conn excludes the background",
    ),
}


def get_protocol(name: str) -> Protocol:
    """Return a protocol by name.

    Raises:
        ConfigError: The protocol is unknown; the message lists the known ones.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"Unknown protocol {name!r}; choose from {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def score_pair(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    protocol: str = "official",
) -> dict[str, float]:
    """Compute all five metrics of one image; arguments and errors as in `SDMatte.scoring.mse`.

    Returns:
        ``{"MSE", "MAD", "SAD", "Grad", "Conn"}``; MSE and MAD are not multiplied by 1000.
    """
    return {key: metric(pred, true, trimap, protocol=protocol) for key, metric in METRICS.items()}


def read_truth(
    pred: np.ndarray,
    alpha_path: str | Path,
    trimap_path: str | Path | None,
    protocol: Protocol,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the true alpha and the trimap of a prediction, as `score_pair` takes them.

    Raises:
        DataError: A file is unreadable or differs in size from the prediction, or the trimap has
            values that `SDMatte.images.io.trimap_levels` rejects.
    """
    true = protocol.as_scored(read_alpha(alpha_path))
    _check_size(pred, true, f"true alpha {alpha_path}")
    if trimap_path is None:
        return true, None
    trimap = trimap_levels(read_trimap(trimap_path), f"The trimap {trimap_path}")
    _check_size(pred, trimap, f"trimap {trimap_path}")
    return true, trimap


def _check_size(pred: np.ndarray, other: np.ndarray, name: str) -> None:
    if pred.shape != other.shape:
        (h, w), (other_h, other_w) = pred.shape, other.shape
        raise DataError(f"The prediction is {w}x{h}, but its {name} is {other_w}x{other_h}.")
