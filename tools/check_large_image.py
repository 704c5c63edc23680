"""Evaluate `refine="tiles"` on a drawn 8K image with a known matte.

    python tools/check_large_image.py --model output/quickstart/train

Print the error along the object's edges with and without refinement, time and peak memory. The
exit status is 1 if refinement increases the error.
"""

import argparse
import time

import cv2
import numpy as np

from SDMatte import MattePredictor
from SDMatte.runtime.devices import peak_memory

CHUNK = 512


def draw(width: int, height: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a furry ball on a blurred background, in chunks of rows.

    Returns:
        Image, uint8 `[H, W, 3]`, and alpha, float32 `[H, W]`.
    """
    rng = np.random.default_rng(seed)
    unit = height / 4320
    angles = np.linspace(0, 2 * np.pi, 1 << 16, dtype=np.float32)
    lengths = np.repeat(rng.uniform(0.2, 1, 1200), 55)[: len(angles)]
    profile = 1300 + lengths * 260 * (0.5 + 0.5 * np.cos(1200 * angles)) ** 2
    background = cv2.resize(rng.uniform(40, 215, (9, 16, 3)).astype(np.float32), (width, height))
    image, alpha = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.float32)
    for top in range(0, height, CHUNK):
        rows = slice(top, min(top + CHUNK, height))
        ys, xs = np.mgrid[rows, :width].astype(np.float32)
        ys, xs = (ys - height / 2) / unit, (xs - width / 2) / unit
        radius, angle = np.hypot(ys, xs), np.arctan2(ys, xs) % (2 * np.pi)
        edge = np.interp(angle, angles, profile)
        alpha[rows] = np.clip((edge - radius) / 6 + 0.5, 0, 1)
        shade = 0.75 + 0.25 * np.cos(1200 * angle)
        fur = shade[..., None] * np.array([190, 120, 60])
        weight = alpha[rows][..., None]
        image[rows] = np.round(weight * fur + (1 - weight) * background[rows])
    return image, alpha


def main() -> int:
    """Draw the image, predict with and without refinement, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="see MattePredictor.from_pretrained")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--width", type=int, default=7680)
    parser.add_argument("--height", type=int, default=4320)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    image, alpha = draw(args.width, args.height)
    predictor = MattePredictor.from_pretrained(
        args.model, device=args.device, resolution=args.resolution
    )
    height, width = alpha.shape
    reach = 1570 * height / 4320
    box = (width / 2 - reach, height / 2 - reach, width / 2 + reach, height / 2 + reach)
    band = cv2.dilate(((alpha > 0) & (alpha < 1)).astype(np.uint8), np.ones((25, 25))) > 0
    predictor.set_image(image)
    errors = []
    for refine in (None, "tiles"):
        start = time.perf_counter()
        result = predictor.predict(box=box, refine=refine)
        seconds = time.perf_counter() - start
        errors.append(float(np.abs(result.alpha - alpha)[band].mean()))
        peak = peak_memory(predictor.device)
        print(
            f"{width}x{height} at {predictor.resolution}, refine={refine}: error along the edges "
            f"{1000 * errors[-1]:.2f} (MAD x 1000), {seconds:.1f} s, peak memory {peak:.2f} GiB",
            flush=True,
        )
    return int(errors[1] > errors[0])


if __name__ == "__main__":
    raise SystemExit(main())
