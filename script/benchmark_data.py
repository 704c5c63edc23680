"""Benchmark the data path on one core against a plain implementation of its steps.

Draw sources of 2000 x 3000 pixels (JPEG images, PNG alphas) into a temporary folder and make the
same samples from the same random draws in two or three ways::

    python script/benchmark_data.py [--repeats 6] [--sources DIR]
    python script/benchmark_data.py --sheet docs/data_fast_mode.jpg

*plain*: the steps of data/README.md at full size, with OpenCV, and scipy for the ten Gaussians and
the components. *official*: `MattingDataset` with its defaults. *reduced*: with
``decode="reduced"``. Fail if official and plain samples differ. Times are CPU times of one thread.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from SDMatte.cli.common import integer, run_command
from SDMatte.data import MattingDataset, Sample
from SDMatte.data.transforms import to_gray
from SDMatte.images.io import write_image
from SDMatte.images.sheets import contact_sheet
from SDMatte.prompts.maps import ellipse
from SDMatte.samples import background, foreground

SHAPE = (2000, 3000)
KINDS = ("hair", "solid", "fur")
SMALL_SHAPE, SMALL_SIZE, SMALL_COUNT = (384, 384), 96, 12
SMALL_SETTINGS = {"kernel_sizes": (3, 6), "point_radius": 5.0, "duplicate_prob": 0.5}
TOLERANCE = 1e-5
DETAIL = 128


# --------------------------------------------------------------------- sources


def write_sources(folder: Path, shape: tuple[int, int], count: int) -> list[Sample]:
    """Draw opaque foregrounds with alphas, and backgrounds; existing files are kept."""
    samples = []
    for i in range(count):
        rng = np.random.default_rng((7, i))
        names = [
            f"{kind}{i}.{end}" for kind, end in (("fg", "jpg"), ("alpha", "png"), ("bg", "jpg"))
        ]
        if not all((folder / name).exists() for name in names):
            fg, alpha = foreground(rng, KINDS[i % len(KINDS)], *shape)
            bg, _ = background(rng, *shape, held_out=False)
            grain = rng.normal(0, 0.01, (*shape, 1))  # sensor noise makes up most of a JPEG file
            images = (np.clip(fg + grain, 0, 1), alpha, np.clip(bg + grain, 0, 1))
            for name, image in zip(names, images, strict=True):
                write_image(folder / name, image)
        samples.append(Sample("benchmark", names[0], names[1], background=names[2], is_trans=0))
    return samples


# ----------------------------------------------------------------- plain steps


def plain_sample(dataset: MattingDataset, index: int, epoch: int) -> dict[str, torch.Tensor]:
    """Make a sample step by step, with the random draws of the dataset."""
    sample, size, settings = dataset.samples[index], dataset.size, dataset.settings
    rng = dataset.streams(index, epoch)
    image, alpha = plain_decode(dataset.root, sample)
    if sample.background:
        image, alpha = plain_composite(
            image, alpha, dataset.root / sample.background, rng, settings
        )
    image, alpha = plain_resize(image, size), plain_resize(alpha, size)
    maps = {"trimap": plain_trimap(alpha, rng["trimap"], settings)}
    maps["mask"], mask_coords = plain_mask(alpha, rng["mask"], settings)
    maps["bbox_mask"], box_coords = plain_box(alpha, rng["box"], settings.jitter(dataset.training))
    maps["point_mask"], point_coords = plain_points(
        alpha, rng["point"], settings.radius(dataset.training)
    )
    if dataset.training and rng["gray"].random() < settings.gray_prob:
        image = to_gray(image)
    maps |= {"image": image, "alpha": alpha, "auto_mask": np.ones_like(alpha)}
    coords = {"mask": mask_coords, "bbox": box_coords, "point": point_coords}
    result = {name: plain_tensor(array) for name, array in maps.items()}
    return result | {f"{name}_coords": torch.tensor(value) for name, value in coords.items()}


def plain_decode(root: Path, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Step 1: decode image and alpha, float32 in [0, 1]."""
    alpha = cv2.imread(str(root / sample.alpha), cv2.IMREAD_GRAYSCALE)
    image = cv2.imread(str(root / sample.image), cv2.IMREAD_COLOR)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image.astype(np.float32) / 255, alpha.astype(np.float32) / 255


def plain_composite(
    fg: np.ndarray,
    alpha: np.ndarray,
    path: Path,
    rng: Mapping[str, np.random.Generator],
    settings: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Step 2: decode the background and composite."""
    draw = rng["composite"]
    duplicate = draw.random() < settings.duplicate_prob
    blur = draw.random() < settings.blur_prob
    blur_size = int(draw.choice(settings.blur_sizes))
    height, width = alpha.shape
    bg = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    bg = cv2.resize(bg, (2 * width if duplicate else width, height))
    if blur:
        bg = cv2.blur(bg, (blur_size, blur_size))
    bg = bg.astype(np.float32) / 255
    if duplicate:
        fg, alpha = np.concatenate([fg, fg], 1), np.concatenate([alpha, alpha], 1)
    image = fg * alpha[..., None] + bg * (1 - alpha[..., None])
    if duplicate:
        kept = int(draw.integers(2))
        alpha[:, (1 - kept) * width : (2 - kept) * width] = 0
    return image, alpha


def plain_resize(array: np.ndarray, size: int) -> np.ndarray:
    """Step 3: resize."""
    return cv2.resize(array, (size, size), interpolation=cv2.INTER_LINEAR)


def plain_trimap(alpha: np.ndarray, rng: np.random.Generator, settings: Any) -> np.ndarray:
    """Step 4: draw a trimap."""
    low, high = settings.kernel_sizes
    fg = cv2.erode(alpha + np.float32(1e-5), ellipse(int(rng.integers(low, high + 1)))) > 0.95
    bg = cv2.erode(1 - alpha + np.float32(1e-5), ellipse(int(rng.integers(low, high + 1)))) > 0.95
    return np.where(bg, 0, np.where(fg, 1, 0.5)).astype(np.float32)


def plain_mask(
    alpha: np.ndarray, rng: np.random.Generator, settings: Any
) -> tuple[np.ndarray, Any]:
    """Step 5: draw a mask."""
    low, high = settings.kernel_sizes
    mask = (alpha >= rng.uniform(*settings.mask_threshold)).astype(np.float32)
    chosen = ((cv2.erode,), (cv2.dilate,), (cv2.erode, cv2.dilate), (cv2.dilate, cv2.erode))
    for operation in chosen[rng.integers(4)]:
        mask = operation(mask, ellipse(int(rng.integers(low, high + 1))))
    ys, xs = np.where(mask > 0)
    if not len(xs):
        return mask, np.float32([0, 0, 1, 1])
    height, width = mask.shape
    box = [xs.min() / width, ys.min() / height, xs.max() / width, ys.max() / height]
    return mask, np.float32(box)


def plain_box(alpha: np.ndarray, rng: np.random.Generator, jitter: float) -> tuple[np.ndarray, Any]:
    """Step 6: draw a box, computing areas component by component."""
    height, width = alpha.shape
    labels, count = ndimage.label(alpha > 0)
    areas = [int((labels == i).sum()) for i in range(1, count + 1)]
    mask = np.zeros_like(alpha)
    if not areas:
        return mask, np.float32([0, 0, 1, 1])
    order = sorted(range(count), key=lambda i: -areas[i])
    alone = count == 1 or areas[order[0]] >= 10 * areas[order[1]]
    ys, xs = np.where(labels == order[0] + 1) if alone else np.where(labels > 0)
    x0, y0, x1, y1 = (int(v) for v in (xs.min(), ys.min(), xs.max(), ys.max()))
    fraction = rng.uniform(0, jitter)
    step_x, step_y = int(fraction * (x1 - x0)), int(fraction * (y1 - y0))
    moved = []
    for side, step, way, largest in zip(
        (x0, y0, x1, y1),
        (step_x, step_y, step_x, step_y),
        rng.integers(0, 2, size=4) * 2 - 1,
        (width - 1, height - 1, width - 1, height - 1),
        strict=True,
    ):
        moved.append(min(max(side + way * step, 0), largest))
    x0, y0, x1, y1 = moved
    mask[y0:y1, x0:x1] = 1
    return mask, np.float32([x0 / width, y0 / height, x1 / width, y1 / height])


def plain_points(
    alpha: np.ndarray, rng: np.random.Generator, sigma: float
) -> tuple[np.ndarray, Any]:
    """Step 7: draw points, with ten filters over the whole image."""
    height, width = alpha.shape
    ys, xs = np.where(alpha > 0.8)
    coords = np.zeros(20, np.float32)
    if len(xs) < 10:
        return np.zeros_like(alpha), coords
    maps = []
    for i, chosen in enumerate(rng.choice(np.arange(len(xs)), 10, replace=False)):
        x, y = xs[chosen], ys[chosen]
        coords[2 * i : 2 * i + 2] = x / width, y / height
        single = np.zeros((height, width), np.float32)
        single[y, x] = 1
        blurred = ndimage.gaussian_filter(single, sigma)
        maps.append(blurred / blurred.max())
    return np.max(maps, axis=0), coords


def plain_tensor(array: np.ndarray) -> torch.Tensor:
    """Step 9: convert to a tensor in [-1, 1]."""
    array = array if array.ndim == 3 else array[..., None]
    return torch.from_numpy(array).permute(2, 0, 1).contiguous() * 2 - 1


# ------------------------------------------------------------------ measuring

Maker = Callable[[int, int], Mapping[str, Any]]


def time_makers(makers: Mapping[str, Maker], count: int, repeats: int) -> dict[str, float]:
    """Return CPU seconds per sample; the makers take turns on the same samples."""
    spent = dict.fromkeys(makers, 0.0)
    for make in makers.values():
        make(0, 0)  # warm up
    for epoch in range(repeats):
        for name, make in makers.items():
            start = time.process_time()
            make(epoch, epoch % count)
            spent[name] += time.process_time() - start
    return {name: seconds / repeats for name, seconds in spent.items()}


def largest_difference(samples: Mapping[str, Any], others: Mapping[str, Any]) -> float:
    """Return the largest difference between the tensors that two samples share."""
    return max(
        float((others[name].double() - value.double()).abs().max())
        for name, value in samples.items()
        if torch.is_tensor(others.get(name))
    )


def compare(title: str, samples: list[Sample], root: Path, repeats: int, **options: Any) -> None:
    """Print the milliseconds per sample of each maker.

    Raises:
        SystemExit: Official samples differ from plain ones.
    """
    official = MattingDataset(samples=samples, root=root, **options)
    reduced = MattingDataset(
        samples=samples, root=root, **{**options, "settings": {"decode": "reduced"}}
    )
    makers: dict[str, Maker] = {
        "plain": lambda epoch, index: plain_sample(official, index, epoch),
        "official": lambda epoch, index: official[epoch, index],
    }
    if official.training:
        makers["reduced"] = lambda epoch, index: reduced[epoch, index]
    worst = max(
        largest_difference(
            plain_sample(official, i % len(samples), i), official[i, i % len(samples)]
        )
        for i in range(repeats)
    )
    if worst > TOLERANCE:
        raise SystemExit(f"{title}: official samples differ from the plain ones by {worst:.2g}.")
    print(f"\n{title}; official samples equal plain ones to {worst:.1g}\n")
    totals = time_makers(makers, len(samples), repeats)
    for name, seconds in totals.items():
        times = totals["plain"] / seconds
        print(
            f"{name:10s} {1e3 * seconds:8.1f} ms per sample, {1 / seconds:5.1f} /s, {times:4.1f}x"
        )


def compare_cache(folder: Path, repeats: int) -> None:
    """Print the gain of the cache on a small set that is read repeatedly.

    Raises:
        SystemExit: The cache changes samples.
    """
    samples = write_sources(folder, SMALL_SHAPE, SMALL_COUNT)
    ways = {
        "official": {},
        "cache_mb=100": {"cache_mb": 100},
        "cache_mb=100 decode=reduced": {"cache_mb": 100, "decode": "reduced"},
    }
    makers: dict[str, Maker] = {}
    for name, settings in ways.items():
        dataset = MattingDataset(
            samples=samples, root=folder, size=SMALL_SIZE, settings=SMALL_SETTINGS | settings
        )
        for index in range(len(samples)):
            dataset[index]
        makers[name] = lambda epoch, index, dataset=dataset: dataset[epoch, index]
    for index in range(SMALL_COUNT):
        if largest_difference(makers["official"](1, index), makers["cache_mb=100"](1, index)):
            raise SystemExit("The cache changes samples.")
    totals = time_makers(makers, SMALL_COUNT, 25 * repeats)
    print(f"\nTraining at {SMALL_SIZE} from sources of {SMALL_SHAPE[0]} pixels, second epoch on\n")
    for name, seconds in totals.items():
        times = totals["official"] / seconds
        print(f"{name:28s} {1 / seconds:7.0f} samples per second, {times:4.1f}x")


# ----------------------------------------------------------------------- sheet


def show_reduced(samples: list[Sample], root: Path, path: Path, size: int) -> None:
    """Draw official and reduced samples side by side, and print how much they differ."""
    sets = [
        MattingDataset(
            samples=samples, root=root, size=size, settings={"decode": way, "gray_prob": 0}
        )
        for way in ("full", "reduced")
    ]
    labels = (
        "full",
        "reduced",
        "detail: full",
        "reduced",
        "alpha: full",
        "reduced",
        "4 x difference",
    )
    tiles = []
    print("| sample | image: mean, largest | alpha: mean, largest | trimap | box |")
    print("|---|---:|---:|---:|---:|")
    for index in range(len(samples)):
        full, reduced = (dataset[0, index] for dataset in sets)
        images = [(s["image"].permute(1, 2, 0).numpy() + 1) / 2 for s in (full, reduced)]
        alphas = [(s["alpha"][0].numpy() + 1) / 2 for s in (full, reduced)]
        image, alpha = (255 * abs(a - b) for a, b in (images, alphas))  # [0, 1] -> [0, 255]
        trimap = (full["trimap"] != reduced["trimap"]).float().mean()
        box = (full["bbox_coords"] - reduced["bbox_coords"]).abs().max() * size
        print(
            f"| {KINDS[index % len(KINDS)]} | {image.mean():.2f}, {image.max():.0f} "
            f"| {alpha.mean():.2f}, {alpha.max():.0f} | {trimap:.2%} | {box:.0f} |"
        )
        # A soft detail, around the median of the half-covered pixels.
        center = (np.median(v) for v in np.nonzero(abs(alphas[0] - 0.5) < 0.3))
        y, x = (int(np.clip(v - DETAIL // 2, 0, size - DETAIL)) for v in center)
        tiles += images
        tiles += [a[y : y + DETAIL, x : x + DETAIL] for a in (*images, *alphas)]
        tiles.append(np.clip(4 * abs(alphas[0] - alphas[1]), 0, 1)[y : y + DETAIL, x : x + DETAIL])
    sheet = contact_sheet(tiles, labels, columns=len(labels), tile=192)
    Image.fromarray(sheet).save(path, quality=80)
    print(f"wrote {path}: {path.stat().st_size / 1e3:.0f} kB")


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=integer(1), default=6, help="samples per phase")
    parser.add_argument("--sources", type=Path, help="keep the sources in this folder")
    parser.add_argument("--sheet", type=Path, help="only draw what `reduced` changes")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the comparisons, or draw the sheet."""
    logging.getLogger().setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = args.sources or Path(temporary)
        samples = write_sources(root / "large", SHAPE, len(KINDS))
        if args.sheet:
            show_reduced(samples, root / "large", args.sheet, 512)
            return
        compare("Training at 512, composites", samples, root / "large", args.repeats, size=512)
        natural = [Sample("benchmark", s.image, s.alpha, is_trans=0) for s in samples]
        compare("Test at 1024", natural, root / "large", args.repeats, size=1024, training=False)
        compare_cache(root / "small", args.repeats)


if __name__ == "__main__":
    sys.exit(run_command(main, parse_args()))
