"""The five matting metrics as pure functions of two alphas (paper, Sec. 4.1).

The definitions follow Rhemann et al., "A Perceptually Motivated Online Benchmark for Image Matting"
(CVPR 2009), as computed by the published evaluation of SDMatte: in single precision, with double
precision only inside the filters and in the sums of Grad and Conn. All values are raw: MSE and MAD
are *not* multiplied by 1000; SAD, Grad and Conn are divided by 1000.

An alpha is ``[H, W]``, either 8-bit (read as value / 255) or floating point in [0, 1]. With a
trimap, only the pixels of value 128 count.

``protocol`` selects the definition. Only the connectivity error has two: ``official`` counts the
background as a component like any other, as the published evaluation does; ``corrected`` excludes
it, as the original benchmark does. `SDMatte.scoring.protocols` prepares the arrays.
"""

import math

import cv2
import numpy as np

METRIC_PROTOCOLS = ("official", "corrected")
UNKNOWN = 128
"""Trimap value of the pixels that count."""

SIGMA = 1.4
NUM_STEPS = 10
MIN_DISTANCE = 0.15
_BELOW_MIN_DISTANCE = float(np.nextafter(np.float32(MIN_DISTANCE), np.float32(0)))

_HALF = math.ceil(SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * SIGMA * 0.01)))
_CHUNK = 128
"""Rows processed at a time, few enough to stay in the CPU cache."""

_RANGE_SLACK = 1e-5
_COUNT_SLACK = 1e-8
"""Added to the number of unknown pixels, as in the published evaluation, so that a trimap without
unknown pixels gives 0."""


def mse(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    *,
    protocol: str = "official",
) -> float:
    """Compute the mean squared error.

    Args:
        pred: Predicted alpha ``[H, W]``, 8-bit or floating in [0, 1].
        true: True alpha, likewise.
        trimap: ``[H, W]``, integer. If given, only pixels of value 128 count; 0 if there are none.
        protocol: ``"official"`` or ``"corrected"``; the formula is the same.

    Returns:
        The error in [0, 1].

    Raises:
        ValueError: A shape, data type or range is invalid, or the protocol is unknown.
    """
    pred, true, weight = _check(pred, true, trimap, protocol)
    return _mean(np.square(pred - true), weight)


def mad(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    *,
    protocol: str = "official",
) -> float:
    """Compute the mean absolute difference, in [0, 1]; arguments and errors as in `mse`."""
    pred, true, weight = _check(pred, true, trimap, protocol)
    return _mean(np.abs(pred - true), weight)


def sad(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    *,
    protocol: str = "official",
) -> float:
    """Compute the sum of absolute differences / 1000; arguments and errors as in `mse`."""
    pred, true, weight = _check(pred, true, trimap, protocol)
    return _total(np.abs(pred - true), weight) / 1000


def gradient(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    *,
    protocol: str = "official",
) -> float:
    """Compute the gradient error: squared differences of gradient magnitudes, summed / 1000.

    The gradient is a first-order Gaussian derivative with sigma 1.4 and a kernel of unit L2 norm;
    border pixels are replicated. A trimap restricts the sum, not the gradients. Arguments and
    errors as in `mse`.
    """
    pred, true, weight = _check(pred, true, trimap, protocol)
    total = 0.0
    for y in range(0, len(pred), _CHUNK):
        rows = np.s_[max(0, y - _HALF) : y + _CHUNK + _HALF]
        differs = np.flatnonzero((pred[rows] != true[rows]).any(axis=0))
        if not differs.size:
            continue
        # Farther than half a kernel from any difference, both gradients are bit-identical.
        columns = np.s_[max(0, differs[0] - 2 * _HALF) : differs[-1] + 1 + 2 * _HALF]
        inner = np.s_[y - rows.start : y - rows.start + _CHUNK]
        a, b = (_gradient_magnitude(alpha[rows, columns])[inner] for alpha in (pred, true))
        where = None if weight is None else weight[y : y + _CHUNK, columns].view(np.uint8)
        total += cv2.norm(a, b, cv2.NORM_L2SQR, where)  # sums in double precision
    return total / 1000


def connectivity(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    *,
    protocol: str = "official",
) -> float:
    """Compute the connectivity error: sum of ``|phi_pred - phi_true|`` / 1000.

    For each threshold 0.1, 0.2, … 1, Omega is the largest 4-connected component of the pixels
    where both alphas reach the threshold. ``l`` of a pixel is the last threshold before the first
    one at which the pixel is outside Omega: 0 if it is never inside, 1 if it is never outside.
    With ``d = alpha - l``, ``phi = 1 - d`` where ``d >= 0.15``, else 1.

    ``official`` counts the pixels below the threshold as one more component, which is Omega
    wherever the foreground is smaller, so an empty prediction scores 0. ``corrected`` excludes
    them; Omega is empty if no pixel reaches the threshold. Ties go to the background, then to the
    component that comes first in row-major order.

    Arguments and errors as in `mse`.
    """
    pred, true, weight = _check(pred, true, trimap, protocol)
    steps = _steps_connected(pred, true, count_background=protocol == "official")
    total = 0.0
    for y in range(0, len(pred), _CHUNK):
        rows = np.s_[y : y + _CHUNK]
        if np.array_equal(pred[rows], true[rows]):
            continue
        last = cv2.LUT(steps[rows], _THRESHOLDS)
        where = None if weight is None else weight[rows].view(np.uint8)
        excess = _excess(pred[rows], last), _excess(true[rows], last)
        total += cv2.norm(*excess, cv2.NORM_L1, where)  # sums in double precision
    return total / 1000


METRICS = {"MSE": mse, "MAD": mad, "SAD": sad, "Grad": gradient, "Conn": connectivity}
"""Functions by their name in tables and files, in the order of the paper's tables."""


def _check(
    pred: np.ndarray, true: np.ndarray, trimap: np.ndarray | None, protocol: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Validate the arguments; return both alphas as float32 in [0, 1] and the pixels that count."""
    if protocol not in METRIC_PROTOCOLS:
        raise ValueError(
            f"Unknown protocol {protocol!r}; choose from {', '.join(METRIC_PROTOCOLS)}."
        )
    pred, true = _as_unit_range(pred, "pred"), _as_unit_range(true, "true")
    if pred.shape != true.shape:
        raise ValueError(f"pred is {pred.shape} and true is {true.shape}; shapes must be equal.")
    if trimap is None:
        return pred, true, None
    trimap = np.asarray(trimap)
    if trimap.shape != pred.shape:
        raise ValueError(
            f"trimap is {trimap.shape} and pred is {pred.shape}; shapes must be equal."
        )
    if not np.issubdtype(trimap.dtype, np.integer):
        raise ValueError(f"trimap is {trimap.dtype}; it must be integer, with 128 for unknown.")
    return pred, true, trimap == UNKNOWN


def _as_unit_range(alpha: np.ndarray, name: str) -> np.ndarray:
    """Convert an 8-bit or floating-point alpha to contiguous float32 in [0, 1]."""
    alpha = np.asarray(alpha)
    if alpha.ndim != 2 or alpha.size == 0:
        raise ValueError(f"{name} has shape {alpha.shape}; it must be [H, W] and not empty.")
    if alpha.dtype == np.bool_:
        return alpha.astype(np.float32)
    if alpha.dtype == np.uint8:
        return np.divide(alpha, np.float32(255), dtype=np.float32)  # [0, 255] -> [0, 1]
    if not np.issubdtype(alpha.dtype, np.floating):
        raise ValueError(f"{name} is {alpha.dtype}; it must be uint8, bool or floating point.")
    low, high = float(alpha.min()), float(alpha.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} has NaN or infinite values.")
    if low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK:
        raise ValueError(
            f"{name} is in [{low:g}, {high:g}]; floating-point alpha must be in [0, 1]."
        )
    alpha = np.ascontiguousarray(alpha, dtype=np.float32)
    return np.clip(alpha, 0, 1) if low < 0 or high > 1 else alpha


def _total(error: np.ndarray, weight: np.ndarray | None) -> float:
    return float(np.sum(error if weight is None else error * weight))


def _mean(error: np.ndarray, weight: np.ndarray | None) -> float:
    if weight is None:
        return float(np.mean(error))
    return _total(error, weight) / (int(np.count_nonzero(weight)) + _COUNT_SLACK)


def _gradient_magnitude(alpha: np.ndarray) -> np.ndarray:
    """Compute the magnitude of the Gaussian derivative, float32 ``[H, W]``.

    The 1-D factors have unit norm, and so does their outer product: the separable filter equals
    the 2-D one. It runs in double precision and rounds once, like a 2-D filter with a double
    accumulator; lower precision would change the error where both alphas nearly agree.
    """
    alpha = alpha.astype(np.float64)
    square = np.zeros(alpha.shape, np.float32)
    for kernel_x, kernel_y in ((_DERIVE, _SMOOTH), (_SMOOTH, _DERIVE)):
        part = cv2.sepFilter2D(
            alpha, cv2.CV_64F, kernel_x, kernel_y, borderType=cv2.BORDER_REPLICATE
        ).astype(np.float32)
        square += np.square(part, out=part)
    return np.sqrt(square, out=square)


def _excess(alpha: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Compute ``1 - phi``: the distance of alpha from ``l``, or 0 where it is below 0.15."""
    return cv2.threshold(cv2.subtract(alpha, last), _BELOW_MIN_DISTANCE, 0, cv2.THRESH_TOZERO)[1]


def _steps_connected(pred: np.ndarray, true: np.ndarray, count_background: bool) -> np.ndarray:
    """Compute the map ``l`` of `connectivity` in steps: uint8 ``[H, W]``, 0 to 10.

    Where both alphas are equal, ``l`` does not affect the error and stays 0.

    Args:
        pred: float32 ``[H, W]`` in [0, 1].
        true: float32 ``[H, W]`` in [0, 1].
        count_background: Whether the pixels below a threshold count as a component.
    """
    # Both alphas reach a threshold where the smaller one does. The product is exact enough: it
    # never rounds a float32 below a threshold up to the next integer.
    level = cv2.min(pred, true)
    level *= np.float32(NUM_STEPS)
    level = level.astype(np.uint8)
    result = steps = np.zeros(level.shape, np.uint8)
    kept = (pred != true).view(np.uint8)  # differs, and inside Omega in all steps so far
    seed = _seed(level)
    for step in range(1, NUM_STEPS + 1):
        mask = cv2.threshold(level, step - 1, 1, cv2.THRESH_BINARY)[1]  # level >= step
        foreground = cv2.countNonZero(mask)
        background = result.size - foreground
        background_wins = count_background and background >= foreground
        if not count_background and not cv2.countNonZero(cv2.bitwise_and(kept, mask)):
            break
        if not background_wins:
            # Thresholds rise, so the foreground only shrinks: crop to it.
            x, y, width, height = cv2.boundingRect(mask)
            window = np.s_[y : y + height, x : x + width]
            omega, size, seed = _largest_component(
                mask[window], foreground, (seed[0] - x, seed[1] - y), level[window]
            )
            background_wins = count_background and background >= size
        if background_wins:
            # The background grows while the components shrink, so it stays Omega from here on,
            # and the pixels kept now are kept to the end.
            np.maximum(steps, NUM_STEPS * cv2.subtract(kept, mask), out=steps)
            break
        level, steps = level[window], steps[window]
        kept = cv2.bitwise_and(kept[window], omega)
        if not cv2.countNonZero(kept):
            break
        np.add(steps, kept, out=steps)
    return result


def _seed(level: np.ndarray) -> tuple[int, int]:
    """Return (x, y) of a pixel among high values, which likely stays in the largest component."""
    height, width = level.shape
    coarse = (max(1, width // 16), max(1, height // 16))
    x, y = cv2.minMaxLoc(cv2.resize(level, coarse, interpolation=cv2.INTER_AREA))[3]
    return (2 * x + 1) * width // (2 * coarse[0]), (2 * y + 1) * height // (2 * coarse[1])


def _largest_component(
    mask: np.ndarray, count: int, seed: tuple[int, int], level: np.ndarray
) -> tuple[np.ndarray, int, tuple[int, int]]:
    """Find the largest 4-connected component; among equals, the first in row-major order.

    Args:
        mask: uint8 ``[h, w]``, 0 or 1, not all 0.
        count: Number of ones.
        seed: (x, y) of a pixel that is likely inside. If its component, which a flood fill finds
            fast, holds more than half of the ones, the others are not measured.
        level: The map that the mask was thresholded from, to choose the next seed.

    Returns:
        The component as uint8, 0 or 1; its size; a seed for the next, smaller mask.
    """
    x, y = seed
    height, width = mask.shape
    if 0 <= x < width and 0 <= y < height and mask[y, x]:
        filled = np.zeros((height + 2, width + 2), np.uint8)  # OpenCV requires a border
        size = cv2.floodFill(mask, filled, seed, 1, flags=4 | cv2.FLOODFILL_MASK_ONLY)[0]
        if 2 * size > count:
            return filled[1:-1, 1:-1], size, seed
    mask = np.ascontiguousarray(mask)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    sizes = stats[:, cv2.CC_STAT_AREA]
    sizes[0] = 0  # the zeros
    winners = np.flatnonzero(sizes == sizes.max())
    winner = winners[0]
    if len(winners) > 1:  # the order of OpenCV's labels is unspecified
        winner = labels.ravel()[np.argmax(np.isin(labels, winners))]
    omega = (labels == winner).view(np.uint8)
    return omega, int(sizes[winner]), _seed(level * omega)


_OFFSETS = np.arange(-_HALF, _HALF + 1, dtype=np.float64)
_SMOOTH = np.exp(-(_OFFSETS**2) / (2 * SIGMA**2))
_DERIVE = _OFFSETS * _SMOOTH
_SMOOTH /= np.linalg.norm(_SMOOTH)
_DERIVE /= np.linalg.norm(_DERIVE)
"""Smoothing and derivative factor of the gradient's filter, each of unit L2 norm."""

_THRESHOLDS = np.arange(256, dtype=np.float32) / np.float32(NUM_STEPS)
