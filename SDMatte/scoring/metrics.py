"""The five matting metrics as pure functions of two pictures (paper section 4.1).

The definitions are those of Rhemann et al., "A Perceptually Motivated Online Benchmark for Image
Matting" (CVPR 2009), as the published evaluation of SDMatte computes them: single precision
throughout, double only inside the filters and in the sums of Grad and Conn. All values
are raw: MSE and MAD are *not* multiplied by 1000, SAD, Grad and Conn are divided by 1000.

A picture is ``[H, W]``, either 8-bit (taken as value / 255) or floating in [0, 1]. With a trimap,
only the pixels of value 128 count.

``protocol`` picks the definition. Mean and gradient errors have one definition only, the
connectivity error has two: ``official`` counts the background as a component like any other,
as the published evaluation does, ``corrected`` leaves it out, as the original benchmark does.
How the two arrays come about (truncated to 8 bits, or floating) is the tested_model of
`SDMatte.scoring.protocols`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

METRIC_PROTOCOLS = ("official", "corrected")
UNKNOWN = 128
"""The trimap's value for the pixels that count."""

SIGMA = 1.4
NUM_STEPS = 10
MIN_DISTANCE = 0.15
_BELOW_MIN_DISTANCE = float(np.nextafter(np.float32(MIN_DISTANCE), np.float32(0)))

_HALF = math.ceil(SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * SIGMA * 0.01)))
_BAND = 128
"""Rows that are worked on at a time, so that they stay in the processor's cache."""

_FEW_CHANGES = 1 / 20
"""Up to this share of pixels that differ from their neighbour, filling is cheaper than labelling
(about 1 ms and 33 ns a change against 2.4 ms and 8 ns a change, in a million pixels)."""

_RANGE_SLACK = 1e-5
_COUNT_SLACK = 1e-8
"""Added to the number of unknown pixels, as in the published evaluation: a trimap without any
unknown pixel gives 0 and no division by zero."""


def mse(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    *,
    protocol: str = "official",
) -> float:
    """Mean of the squared differences.

    Args:
        pred: Predicted alpha ``[H, W]``, 8-bit or floating in [0, 1].
        true: True alpha, likewise.
        trimap: ``[H, W]``, integer; if given, the mean is over its pixels of value 128, and 0
            where there are none.
        protocol: ``"official"`` or ``"corrected"``, the same formula here.

    Returns:
        The error in [0, 1].

    Raises:
        ValueError: A shape, type, range or the protocol is not as described.
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
    """Mean of the absolute differences, in [0, 1]; arguments and errors as for `mse`."""
    pred, true, weight = _check(pred, true, trimap, protocol)
    return _mean(np.abs(pred - true), weight)


def sad(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    *,
    protocol: str = "official",
) -> float:
    """Sum of the absolute differences / 1000, in thousands of pixels.

    Arguments and errors as for `mse`.
    """
    pred, true, weight = _check(pred, true, trimap, protocol)
    return _total(np.abs(pred - true), weight) / 1000


def gradient(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    *,
    protocol: str = "official",
) -> float:
    """Gradient error: sum of the squared differences of the gradients' magnitudes / 1000.

    The gradient is a first-order Gaussian derivative with sigma 1.4 and a kernel of unit L2 norm,
    the picture being continued by its border pixels. With a trimap the gradients are those of the
    whole picture; only their sum is restricted. Arguments and errors as for `mse`.
    """
    pred, true, weight = _check(pred, true, trimap, protocol)
    total = 0.0
    for y in range(0, len(pred), _BAND):
        rows = np.s_[max(0, y - _HALF) : y + _BAND + _HALF]
        differs = np.flatnonzero((pred[rows] != true[rows]).any(axis=0))
        if not differs.size:
            continue
        # Farther than half a kernel from the differences both gradients are equal, to the bit.
        columns = np.s_[max(0, differs[0] - 2 * _HALF) : differs[-1] + 1 + 2 * _HALF]
        inner = np.s_[y - rows.start : y - rows.start + _BAND]
        magnitudes = [_gradient_magnitude(p[rows, columns])[inner] for p in (pred, true)]
        where = None if weight is None else weight[y : y + _BAND, columns].view(np.uint8)
        total += cv2.norm(*magnitudes, cv2.NORM_L2SQR, where)  # sums in double
    return total / 1000


def connectivity(
    pred: np.ndarray,
    true: np.ndarray,
    trimap: np.ndarray | None = None,
    *,
    protocol: str = "official",
) -> float:
    """Connectivity error: sum of ``|phi_pred - phi_true|`` / 1000.

    For each threshold 0.1, 0.2 … 1, Omega is the largest 4-connected component of the pixels
    where both pictures reach the threshold. ``l`` of a pixel is the last threshold before the
    first one at which the pixel is outside Omega (0 if it never was inside), and 1 if it never
    is. With ``d = alpha - l``, ``phi = 1 - d`` where ``d >= 0.15``, else 1.

    ``official`` counts all pixels below the threshold as one more component, which therefore is
    Omega wherever the foreground is the smaller part: an empty prediction scores 0. ``corrected``
    leaves them out; Omega is then empty where nothing reaches the threshold. Of components of
    one size, the background comes first, then the one met first row by row.

    Arguments and errors as for `mse`.
    """
    pred, true, weight = _check(pred, true, trimap, protocol)
    steps = _steps_connected(pred, true, count_background=protocol == "official")
    total = 0.0
    for y in range(0, len(pred), _BAND):
        rows = np.s_[y : y + _BAND]
        if np.array_equal(pred[rows], true[rows]):
            continue
        last = cv2.LUT(steps[rows], _THRESHOLDS)
        where = None if weight is None else weight[rows].view(np.uint8)
        excess = _excess(pred[rows], last), _excess(true[rows], last)
        total += cv2.norm(*excess, cv2.NORM_L1, where)  # sums in double
    return total / 1000


METRICS = {"MSE": mse, "MAD": mad, "SAD": sad, "Grad": gradient, "Conn": connectivity}
"""Name in tables and files -> function, in the order of the paper's tables."""


def _check(
    pred: np.ndarray, true: np.ndarray, trimap: np.ndarray | None, protocol: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Checks the arguments; gives both pictures as float32 in [0, 1] and the pixels that count."""
    if protocol not in METRIC_PROTOCOLS:
        raise ValueError(f"Unknown protocol {protocol!r}; known are {', '.join(METRIC_PROTOCOLS)}.")
    pred, true = _as_unit_range(pred, "pred"), _as_unit_range(true, "true")
    if pred.shape != true.shape:
        raise ValueError(f"pred is {pred.shape} and true is {true.shape}; they must be alike.")
    if trimap is None:
        return pred, true, None
    trimap = np.asarray(trimap)
    if trimap.shape != pred.shape:
        raise ValueError(f"The trimap is {trimap.shape}, the pictures are {pred.shape}.")
    if not np.issubdtype(trimap.dtype, np.integer):
        raise ValueError(f"The trimap is {trimap.dtype}; it must be integer, 128 for unknown.")
    return pred, true, trimap == UNKNOWN


def _as_unit_range(picture: np.ndarray, name: str) -> np.ndarray:
    """Gives an 8-bit or floating picture as contiguous float32 in [0, 1]."""
    picture = np.asarray(picture)
    if picture.ndim != 2 or picture.size == 0:
        raise ValueError(f"{name} has shape {picture.shape}; it must be [H, W] and not empty.")
    if picture.dtype == np.bool_:
        return picture.astype(np.float32)
    if picture.dtype == np.uint8:
        return np.divide(picture, np.float32(255), dtype=np.float32)  # [0, 255] -> [0, 1]
    if not np.issubdtype(picture.dtype, np.floating):
        raise ValueError(f"{name} is {picture.dtype}; it must be uint8, bool or floating.")
    low, high = float(picture.min()), float(picture.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite values.")
    if low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK:
        raise ValueError(f"{name} is in [{low:g}, {high:g}]; floating alpha must be in [0, 1].")
    picture = np.ascontiguousarray(picture, dtype=np.float32)
    return np.clip(picture, 0, 1) if low < 0 or high > 1 else picture


def _total(error: np.ndarray, weight: np.ndarray | None) -> float:
    return float(np.sum(error if weight is None else error * weight))


def _mean(error: np.ndarray, weight: np.ndarray | None) -> float:
    if weight is None:
        return float(np.mean(error))
    return _total(error, weight) / (int(np.count_nonzero(weight)) + _COUNT_SLACK)


def _gradient_magnitude(picture: np.ndarray) -> np.ndarray:
    """Magnitude of the Gaussian derivative, float32 ``[H, W]``.

    The outer product of two factors of unit norm has unit norm, so that the separable filter
    equals the 2-D one. It runs in double and is rounded once, as a 2-D filter with a double
    accumulator does: where both pictures nearly agree, less would show in the error.
    """
    picture = picture.astype(np.float64)
    square = np.zeros(picture.shape, np.float32)
    for kernel_x, kernel_y in ((_DERIVE, _SMOOTH), (_SMOOTH, _DERIVE)):
        part = cv2.sepFilter2D(
            picture, cv2.CV_64F, kernel_x, kernel_y, borderType=cv2.BORDER_REPLICATE
        ).astype(np.float32)
        square += np.square(part, out=part)
    return np.sqrt(square, out=square)


def _excess(alpha: np.ndarray, last: np.ndarray) -> np.ndarray:
    """``1 - phi``: the distance of alpha from ``l``, 0 where it is below 0.15."""
    return cv2.threshold(cv2.subtract(alpha, last), _BELOW_MIN_DISTANCE, 0, cv2.THRESH_TOZERO)[1]


def _steps_connected(pred: np.ndarray, true: np.ndarray, count_background: bool) -> np.ndarray:
    """The map ``l`` of `connectivity` in steps: uint8 ``[H, W]``, 0 ... 10.

    Where both pictures are equal, ``l`` has no influence on the error and is left 0.

    Args:
        pred: float32 ``[H, W]`` in [0, 1].
        true: float32 ``[H, W]`` in [0, 1].
        count_background: Whether the pixels below a threshold count as a component.
    """
    # Both reach a threshold where the smaller one does. The product is exact enough: no float32
    # below a threshold is rounded up to the next integer.
    level = cv2.min(pred, true)
    level *= np.float32(NUM_STEPS)
    level = level.astype(np.uint8)
    result = steps = np.zeros(level.shape, np.uint8)
    kept = (pred != true).view(np.uint8)  # what matters and was inside Omega in all steps so far
    seed = _amid_high_values(level)
    for step in range(1, NUM_STEPS + 1):
        mask = _at_least(level, step)
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
            # It grows while the components shrink: Omega is the background from here on, and
            # what is kept now is kept to the end.
            np.maximum(steps, NUM_STEPS * cv2.subtract(kept, mask), out=steps)
            break
        level, steps = level[window], steps[window]
        kept = cv2.bitwise_and(kept[window], omega)
        if not cv2.countNonZero(kept):
            break
        steps += kept
    return result


def _at_least(picture: np.ndarray, value: int) -> np.ndarray:
    """Where an 8-bit picture reaches a value: uint8, 0 or 1."""
    return cv2.threshold(picture, value - 1, 1, cv2.THRESH_BINARY)[1]


def _amid_high_values(level: np.ndarray) -> tuple[int, int]:
    """(x, y) of a pixel amid high values, which likely stays in the largest component longest."""
    height, width = level.shape
    coarse = (max(1, width // 16), max(1, height // 16))
    x, y = cv2.minMaxLoc(cv2.resize(level, coarse, interpolation=cv2.INTER_AREA))[3]
    return (2 * x + 1) * width // (2 * coarse[0]), (2 * y + 1) * height // (2 * coarse[1])


def _largest_component(
    mask: np.ndarray, count: int, seed: tuple[int, int], level: np.ndarray
) -> tuple[np.ndarray, int, tuple[int, int]]:
    """The largest 4-connected component, the one met first row by row among equals.

    Args:
        mask: uint8 ``[h, w]``, 0 or 1, not all 0.
        count: How many pixels are 1.
        seed: (x, y) of a pixel that may well be in it: if its component has more than half of
            the pixels, no other needs to be measured.
        level: What the mask comes from; used to choose a better seed.

    Returns:
        The component as uint8 0 or 1, its size, and a seed for the next, smaller mask.
    """
    x, y = seed
    height, width = mask.shape
    seeded = 0 <= x < width and 0 <= y < height and mask[y, x]
    changes = cv2.countNonZero(cv2.absdiff(mask[:, 1:], mask[:, :-1])) if width > 1 else 0
    if seeded and changes < mask.size * _FEW_CHANGES:
        filled = np.zeros((height + 2, width + 2), np.uint8)  # OpenCV wants a border
        size = cv2.floodFill(mask, filled, seed, 1, flags=4 | cv2.FLOODFILL_MASK_ONLY)[0]
        if 2 * size > count:
            return filled[1:-1, 1:-1], size, seed
    labels = cv2.connectedComponents(np.ascontiguousarray(mask), connectivity=4)[1]
    if seeded:
        omega = (labels == labels[y, x]).view(np.uint8)
        size = cv2.countNonZero(omega)
        if 2 * size > count:
            return omega, size, seed
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    winners = np.flatnonzero(sizes == sizes.max())
    winner = winners[0]
    if len(winners) > 1:  # do not rely on the order of OpenCV's labels
        winner = labels.ravel()[np.argmax(np.isin(labels, winners))]
    omega = (labels == winner).astype(np.uint8)
    return omega, int(sizes[winner]), _amid_high_values(level * omega)


def _gaussian_kernels() -> tuple[np.ndarray, np.ndarray]:
    """The smoothing and the derivative factor of the filter, each of unit L2 norm."""
    x = np.arange(-_HALF, _HALF + 1, dtype=np.float64)
    smooth = np.exp(-(x**2) / (2 * SIGMA**2))
    derive = x * smooth
    return smooth / np.linalg.norm(smooth), derive / np.linalg.norm(derive)


_SMOOTH, _DERIVE = _gaussian_kernels()
_THRESHOLDS = np.arange(256, dtype=np.float32) / np.float32(NUM_STEPS)
