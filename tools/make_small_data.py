"""Make objects and backgrounds for `tools/train_small.py` from free sources.

`drawn` draws the sample set's training kinds, `furry` adds hair to the outlines of other objects,
and `views` takes photographs in the surroundings of HDR images (needs OpenEXR).
docs/small_model.md lists the sources and their licenses::

    python tools/make_small_data.py drawn OUT
    python tools/make_small_data.py furry OUT --source FOLDER
    python tools/make_small_data.py views OUT --source FOLDER
"""

import argparse
import base64
import re
import tempfile
from pathlib import Path

import cv2
import numpy as np
from small_scenes import read_cutouts
from tqdm import tqdm

from SDMatte.samples.photos import textures
from SDMatte.samples.registry import OBJECT_KINDS, foreground

Rng = np.random.Generator
_SCALE = 3  # hair is drawn at this many times the size
_SUBPIXELS = 4  # bits


def write_rgba(path: Path, color: np.ndarray, alpha: np.ndarray) -> None:
    """Write straight colors `[h, w, 3]` and alpha `[h, w]`, both in [0, 1], as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgba = np.dstack([color[..., ::-1], alpha])  # RGB -> BGR
    cv2.imwrite(str(path), np.round(np.clip(rgba, 0, 1) * 255).astype(np.uint8))


def draw_kinds(args: argparse.Namespace) -> None:
    """Draw the sample set's training kinds."""
    kinds = [name for name, kind in OBJECT_KINDS.items() if not kind.held_out]
    for index in tqdm(range(args.count)):
        rng = np.random.default_rng([11, index])
        kind = kinds[index % len(kinds)]
        height, width = (int(n) for n in args.size * np.exp(rng.uniform(-0.18, 0.18, 2)))
        color, alpha = foreground(rng, kind, height, width, textures(False))
        part = "transparent" if OBJECT_KINDS[kind].transparent else "opaque"
        write_rgba(args.output / part / f"{index:04}_{kind}.png", color, alpha)


def grow_hair(args: argparse.Namespace) -> None:
    """Add hair to the outlines of objects."""
    cutouts = read_cutouts([args.source], args.size)
    for index in tqdm(range(args.count)):
        rng = np.random.default_rng([12, index])
        cutout = cutouts[rng.integers(len(cutouts))].rgba
        color, alpha = _with_hair(cutout.astype(np.float32) / 255, rng)
        write_rgba(args.output / f"{index:04}.png", color, alpha)


def _with_hair(rgba: np.ndarray, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Add strands along the outline: colors `[h, w, 3]` and alpha `[h, w]` in [0, 1]."""
    margin = int(max(rgba.shape) * rng.uniform(0.05, 0.2))
    rgba = cv2.copyMakeBorder(rgba, *[margin] * 4, cv2.BORDER_CONSTANT)
    solid = (rgba[..., 3] > 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(solid, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    outline = np.concatenate([c[:, 0] for c in contours if len(c) > 20] or [np.zeros((1, 2), int)])
    depth = cv2.distanceTransform(solid, cv2.DIST_L2, 5) - cv2.distanceTransform(
        1 - solid, cv2.DIST_L2, 5
    )
    slope = np.dstack(np.gradient(cv2.GaussianBlur(depth, (0, 0), 3))[::-1])
    size = tuple(n * _SCALE for n in rgba.shape[1::-1])
    strands = np.zeros((size[1], size[0]), np.uint8)
    shade = np.zeros((size[1], size[0], 3), np.float32)
    count = int(len(outline) * rng.uniform(0.4, 2.5))
    length = margin * rng.uniform(0.5, 1.0)
    lean, curl = rng.normal(0, 0.6), rng.normal(0, 0.5)
    for _ in range(count):
        x, y = outline[rng.integers(len(outline))]
        direction = -slope[y, x] + rng.normal(0, 0.25, 2) + (0, lean * 0.5)
        direction /= np.linalg.norm(direction) + 1e-6
        side = np.array([-direction[1], direction[0]])
        t = np.linspace(-0.3, 1, 9)[:, None] * length * rng.uniform(0.3, 1.0)
        bend = side * (lean * 0.3 + rng.normal(0, 0.2)) + side * curl * (t / length)
        points = (np.array([x, y]) + t * direction + t * bend + 0.5) * _SCALE
        points = np.round(points * 2**_SUBPIXELS).astype(np.int32)
        inside = np.clip(np.array([x, y]) + slope[y, x] * 4, 0, np.array(rgba.shape[1::-1]) - 1)
        base = rgba[int(inside[1]), int(inside[0]), :3] * rng.uniform(0.5, 1.3)
        thick = int(rng.integers(1, 4))
        cv2.polylines(strands, [points], False, 255, thick, cv2.LINE_AA, _SUBPIXELS)
        cv2.polylines(shade, [points], False, base.tolist(), thick + 1, cv2.LINE_8, _SUBPIXELS)
    hair = cv2.resize(strands, rgba.shape[1::-1], interpolation=cv2.INTER_AREA) / np.float32(255)
    colors = cv2.resize(shade, rgba.shape[1::-1], interpolation=cv2.INTER_AREA)
    known = cv2.resize((shade.max(-1) > 0).astype(np.float32), rgba.shape[1::-1],
                       interpolation=cv2.INTER_AREA)  # fmt: skip
    colors /= np.maximum(known, 1e-3)[..., None]
    alpha = hair + rgba[..., 3] * (1 - hair)
    mixed = colors * hair[..., None] + rgba[..., :3] * (rgba[..., 3] * (1 - hair))[..., None]
    return mixed / np.maximum(alpha, 1e-3)[..., None], alpha


def take_views(args: argparse.Namespace) -> None:
    """Take photographs in the surroundings of HDR images."""
    paths = sorted(args.source.glob("*.exr.js")) + sorted(args.source.glob("*.exr"))
    args.output.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(args.count)):
        path = paths[index % len(paths)]
        rng = np.random.default_rng([13, index])
        view = _view(_read_exr(path), args.size, rng)
        name = path.name.partition(".")[0]
        cv2.imwrite(str(args.output / f"{index:04}_{name}.jpg"), view[..., ::-1])  # RGB -> BGR


def _read_exr(path: Path) -> np.ndarray:
    """Read an OpenEXR file, or a JavaScript module that embeds one: float32 `[H, W, 3]`."""
    import OpenEXR

    if path.suffix == ".js":  # export default "data:...;base64,..."
        encoded = path.read_text().partition("base64,")[2]
        content = base64.b64decode(re.match(r"[\w+/=]*", encoded)[0])
        with tempfile.NamedTemporaryFile(suffix=".exr") as file:
            file.write(content)
            file.flush()
            return _read_exr(Path(file.name))
    return OpenEXR.File(str(path)).channels()["RGB"].pixels.astype(np.float32)


def _view(surroundings: np.ndarray, size: int, rng: Rng) -> np.ndarray:
    """Take a photograph in a random direction: uint8 `[size, size, 3]`.

    Args:
        surroundings: Equirectangular, float32 `[H, W, 3]`, linear.
        size: Side in pixels.
        rng: Draws direction and field of view.
    """
    yaw, pitch = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.25)
    focal = size / 2 / np.tan(np.radians(rng.uniform(45, 95)) / 2)
    xs, ys = np.meshgrid(np.arange(size) - size / 2, np.arange(size) - size / 2)
    x, y, z = xs / focal, ys / focal, np.ones_like(xs)
    y, z = y * np.cos(pitch) - z * np.sin(pitch), y * np.sin(pitch) + z * np.cos(pitch)
    height, width = surroundings.shape[:2]
    columns = ((np.arctan2(x, z) + yaw) / (2 * np.pi) % 1 * width).astype(np.float32)
    rows = ((np.arctan2(y, np.hypot(x, z)) / np.pi + 0.5) * height).astype(np.float32)
    light = cv2.remap(
        surroundings, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    ).clip(0, 100)
    light *= np.clip(0.5 / max(float(np.median(light)), 1e-4), 0.2, 5)
    shown = np.clip(1.6 * light / (1 + light), 0, 1) ** (1 / 2.2)
    return np.round(shown * 255).astype(np.uint8)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    functions = {"drawn": draw_kinds, "furry": grow_hair, "views": take_views}
    for name, function in functions.items():
        command = commands.add_parser(name, help=function.__doc__)
        command.add_argument("output", type=Path)
        command.add_argument("--count", type=int, default=480)
        command.add_argument("--size", type=int, default=224)
        command.add_argument("--source", type=Path, help="folder of objects or HDR images")
        command.set_defaults(run=function)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
