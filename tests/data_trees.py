"""Small trees in the layouts of the real data sets, with real files."""

from pathlib import Path

import numpy as np

from SDMatte.images.io import write_image

PAIR = {"image": "image", "alpha": "alpha"}
"""The data set that `write_pairs` writes."""

SETTINGS = {"kernel_sizes": [3, 5], "point_radius": 3}
"""Data settings for images of a few dozen pixels."""


def disc(height=40, width=60, radius=15, x=None, y=None):
    """Return a soft disc, float32 [H, W] in [0, 1]."""
    ys, xs = np.mgrid[:height, :width]
    distance = np.hypot(xs - (width / 2 if x is None else x), ys - (height / 2 if y is None else y))
    return np.clip(radius - distance, 0, 1).astype(np.float32)


def random_image(seed, height=40, width=60):
    """Return an image of random squares of 10 pixels, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 10, width // 10, 3))
    return np.kron(coarse, np.ones((10, 10, 1))).astype(np.uint8)


def touch(root, *paths):
    """Create empty files and their folders."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write_pairs(folder, stems, image="image", alpha="alpha", image_ext=".jpg", shape=(40, 60)):
    """Write images and alphas of the same stems."""
    for i, stem in enumerate(stems):
        write_image(Path(folder, image, stem + image_ext), random_image(i, *shape))
        write_image(Path(folder, alpha, f"{stem}.png"), disc(*shape, radius=12 + i))
    return Path(folder)


def write_backgrounds(root, count=4, folder="BG-20K/train"):
    """Write backgrounds b00.jpg, b01.jpg, ..."""
    for i in range(count):
        write_image(Path(root, folder, f"b{i:02d}.jpg"), random_image(100 + i, 30, 50))


def write_composition(root, stems=("x", "y", "z"), backgrounds=4):
    """Write Composition-1K's training set with backgrounds."""
    write_pairs(
        Path(root, "Combined_Dataset/Training_set"), stems, "combined_fg", "combined_alpha", ".png"
    )
    write_backgrounds(root, backgrounds)
    return Path(root)


def write_aim(root, stems=("o_1", "o_2", "o_3")):
    """Write AIM-500, with trimaps."""
    folder = write_pairs(Path(root, "AIM-500"), stems, "original", "mask")
    for stem in stems:
        trimap = np.full((40, 60), 128, np.uint8)
        trimap[:10], trimap[-5:] = 0, 255
        write_image(folder / "trimap" / f"{stem}.png", trimap)
    return Path(root)
