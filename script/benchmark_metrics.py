"""Benchmark speed and memory of the gradient and connectivity errors.

On one thread, compare them with a direct implementation of their definitions with scipy and
scikit-image; fail if the values differ or a limit is missed::

    python script/benchmark_metrics.py [--size 1024] [--repeats 3] [--min-ratio 8]

The target is 10 times faster. An idle machine reaches 10.1 to 21 times, except for the noisy case,
where Conn has many components to label: 9.8 to 10.1. Ratios drop on a busy machine, hence the
limit of 8.
"""

import argparse
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from SDMatte.cli.common import integer, run_command
from SDMatte.scoring import connectivity, gradient, score_pair

TOLERANCE = 1e-5
MEMORY_LIMIT_MIB = 2048
CASES = (  # label, fraction of the area, noise of the prediction
    ("object of 30 %", 0.3, 0.02),
    ("object of 80 %", 0.8, 0.02),
    ("object of 80 %, noisy", 0.8, 0.15),
)
SIZE_4K = (2160, 3840)


def make_pair(height: int, width: int, amount: float, noise: float) -> tuple[np.ndarray, ...]:
    """Make a prediction and truth, uint8: a soft object that covers a fraction of the image."""
    rng = np.random.default_rng(0)
    field = cv2.GaussianBlur(rng.random((height, width)), (0, 0), height / 24)
    field += 0.3 * cv2.GaussianBlur(rng.random((height, width)), (0, 0), 2) * field.std()
    true = np.clip((field - np.quantile(field, 1 - amount)) / field.std() * 3 + 0.5, 0, 1)
    pred = np.clip(true + rng.normal(0, noise, true.shape) * (true > 0), 0, 1)
    return tuple(np.rint(255 * a).astype(np.uint8) for a in (pred, true))


def direct_gradient(pred: np.ndarray, true: np.ndarray) -> float:
    """Compute Grad by definition, with a two-dimensional filter."""
    from scipy import ndimage

    sigma = 1.4
    half = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * 0.01)))
    x = np.arange(-half, half + 1)
    gauss = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    kernel = np.outer(gauss, -x * gauss / sigma**2)
    kernel /= np.sqrt((kernel**2).sum())

    def magnitude(alpha: np.ndarray) -> np.ndarray:
        parts = [ndimage.convolve(alpha, k, mode="nearest") for k in (kernel, kernel.T)]
        return np.sqrt(parts[0] ** 2 + parts[1] ** 2)

    pred, true = (a.astype(np.float32) / np.float32(255) for a in (pred, true))
    return float(((magnitude(pred) - magnitude(true)) ** 2).sum() / 1000)


def direct_connectivity(pred: np.ndarray, true: np.ndarray, protocol: str) -> float:
    """Compute Conn by definition, threshold by threshold over the whole image."""
    from skimage import measure

    pred, true = (a.astype(np.float32) / np.float32(255) for a in (pred, true))
    last = np.full(pred.shape, -1, np.float32)
    for step in range(1, 11):
        threshold = np.float32(step / 10)
        both = (pred >= threshold).astype(int) * (true >= threshold).astype(int)
        labels = measure.label(both, connectivity=1)
        sizes = np.bincount(labels.ravel())
        if protocol == "corrected":
            sizes[0] = 0
        omega = (labels == np.argmax(sizes)) & (sizes.max() > 0)
        last[(last == -1) & ~omega] = (step - 1) / 10
    last[last == -1] = 1

    def phi(alpha: np.ndarray) -> np.ndarray:
        distance = alpha - last
        return 1 - distance * (distance >= 0.15).astype(int)

    return float(np.abs(phi(pred) - phi(true)).sum() / 1000)


def timed(functions: Sequence[Callable[[], float]], repeats: int) -> list[tuple[float, float]]:
    """Return the value and the best CPU time in seconds of each function.

    The functions take turns, so that other load on the machine affects all of them.
    """
    found = [(math.nan, math.inf)] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.process_time()
            value = function()
            found[i] = (value, min(found[i][1], time.process_time() - start))
    return found


def benchmark(size: int, repeats: int) -> float:
    """Print the comparison and return the smallest ratio; exit with an error if values differ."""
    worst = math.inf
    for label, amount, noise in CASES:
        pred, true = make_pair(size, size, amount, noise)
        for protocol in ("official", "corrected"):
            functions = (
                partial(gradient, pred, true, protocol=protocol),
                partial(connectivity, pred, true, protocol=protocol),
                partial(direct_gradient, pred, true),
                partial(direct_connectivity, pred, true, protocol),
            )
            grad, conn, true_grad, true_conn = timed(functions, repeats)
            for name, ours, direct in (("Grad", grad, true_grad), ("Conn", conn, true_conn)):
                if not math.isclose(ours[0], direct[0], rel_tol=TOLERANCE, abs_tol=1e-12):
                    raise SystemExit(f"{name} differs: {ours[0]!r}, direct {direct[0]!r}")
            ours, direct = grad[1] + conn[1], true_grad[1] + true_conn[1]
            worst = min(worst, direct / ours)
            print(
                f"{label:24s} {protocol:9s} {1000 * ours:6.1f} ms, direct {1000 * direct:7.1f} ms: "
                f"{direct / ours:5.1f}x (Grad {true_grad[1] / grad[1]:.1f}, "
                f"Conn {true_conn[1] / conn[1]:.1f})"
            )
    print(f"Grad + Conn, values agree to {TOLERANCE:g} relative; smallest ratio {worst:.1f}")
    return worst


def own_peak_memory() -> float:
    """Return the peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would start from the peak of the parent process
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_memory_4k() -> float:
    """Return the peak memory in MiB of a new process that computes all metrics on a 4K pair."""
    command = [sys.executable, __file__, "--memory-only"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=integer(1), default=1024)
    parser.add_argument("--repeats", type=integer(1), default=3)
    parser.add_argument("--min-ratio", type=float, default=8.0, help="fail below this")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the comparison and the memory test."""
    cv2.setNumThreads(1)
    if args.memory_only:
        height, width = SIZE_4K
        pair = make_pair(height // 4, width // 4, 0.8, 0.15)
        pred, true = (np.tile(a, (4, 4)) for a in pair)
        for protocol in ("official", "corrected"):
            score_pair(pred, true, protocol=protocol)
        print(own_peak_memory())
        return
    ratio = benchmark(args.size, args.repeats)
    peak = peak_memory_4k()
    print(f"peak memory of a process at 3840x2160: {peak:.0f} MiB (limit {MEMORY_LIMIT_MIB})")
    if ratio < args.min_ratio or peak > MEMORY_LIMIT_MIB:
        raise SystemExit("too slow or too large")


if __name__ == "__main__":
    sys.exit(run_command(main, parse_args()))
