"""Scenes to train the small model on: objects with exact alpha, composited in memory.

Scenes vary in many ways, so that no single cue is enough: size, place, rotation, objects cut off by
the frame, targets of several touching objects, other objects behind and in front, two of a kind,
shadows, defocus, noise, JPEG, color casts, gray images, targets with the colors or the texture of
the background.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from SDMatte.prompts.maps import box_prompt, mask_prompt, prompt_of_points
from SDMatte.samples.photos import background as package_background

Rng = np.random.Generator
_MIN_SIDE = 24


@dataclass(frozen=True)
class Cutout:
    """An object: uint8 RGBA `[h, w, 4]`, cropped to what is visible."""

    rgba: np.ndarray
    transparent: bool = False


@dataclass(frozen=True)
class Scene:
    """A composite.

    Attributes:
        image: float32 `[S, S, 3]` in [0, 1].
        alpha: float32 `[S, S]` in [0, 1].
        transparent: Whether the target is transparent.
        others: Number of other objects behind and beside the target.
    """

    image: np.ndarray
    alpha: np.ndarray
    transparent: bool
    others: int

    def mirrored(self) -> "Scene":
        """Return the scene with left and right swapped."""
        image, alpha = (np.ascontiguousarray(array[:, ::-1]) for array in (self.image, self.alpha))
        return replace(self, image=image, alpha=alpha)


def read_cutouts(folders: Sequence[Path], max_side: int = 256) -> list[Cutout]:
    """Read the RGBA images below folders, cropped and reduced to a longer side of `max_side`.

    Images below a folder `transparent` are transparent objects.
    """
    paths = [p for folder in folders for p in sorted(folder.rglob("*"))]
    cutouts = []
    for path in paths:
        if path.suffix.lower() not in (".png", ".webp"):
            continue
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 3 or image.shape[2] != 4:
            continue
        x, y, w, h = cv2.boundingRect((image[..., 3] > 8).astype(np.uint8))
        if min(w, h) < _MIN_SIDE or image[y : y + h, x : x + w, 3].min() > 200 and w * h > 16384:
            continue  # nothing, or a full rectangle
        image = cv2.cvtColor(image[y : y + h, x : x + w], cv2.COLOR_BGRA2RGBA)
        scale = max_side / max(w, h)
        if scale < 1:
            size = max(1, round(w * scale)), max(1, round(h * scale))
            image = _resize_rgba(image, size)
        cutouts.append(Cutout(np.ascontiguousarray(image), "transparent" in path.parts))
    return cutouts


def read_backgrounds(folders: Sequence[Path], max_side: int = 768) -> list[np.ndarray]:
    """Read the photographs below folders: uint8 `[h, w, 3]`, RGB."""
    images = []
    for path in (p for folder in folders for p in sorted(folder.rglob("*"))):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            continue
        scale = max_side / max(image.shape[:2])
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    return images


def _resize_rgba(rgba: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to a width and height, colors weighted by alpha."""
    method = cv2.INTER_AREA if size[0] < rgba.shape[1] else cv2.INTER_LINEAR
    alpha = rgba[..., 3:].astype(np.float32)
    mixed = np.concatenate([rgba[..., :3] * (alpha / 255), alpha], axis=-1)
    mixed = cv2.resize(mixed, size, interpolation=method)
    mixed[..., :3] *= 255 / np.maximum(mixed[..., 3:], 1)
    return np.clip(mixed, 0, 255).round().astype(np.uint8)


class SceneMaker:
    """Compose scenes.

    Args:
        cutouts: Groups of objects with their relative probabilities: (weight, objects).
        backgrounds: Photographs, uint8 `[h, w, 3]`.
    """

    def __init__(
        self, cutouts: Sequence[tuple[float, Sequence[Cutout]]], backgrounds: Sequence[np.ndarray]
    ):
        self.groups = [objects for _, objects in cutouts]
        weights = np.array([weight for weight, _ in cutouts])
        self.weights = weights / weights.sum()
        self.backgrounds = backgrounds

    # ------------------------------------------------------------------ parts

    def _cutout(self, rng: Rng) -> Cutout:
        group = self.groups[rng.choice(len(self.groups), p=self.weights)]
        return group[rng.integers(len(group))]

    def photo(self, size: int, rng: Rng, smallest: float = 0.15) -> np.ndarray:
        """Crop a photograph, float32 `[size, size, 3]` in [0, 1]."""
        image = self.backgrounds[rng.integers(len(self.backgrounds))]
        height, width = image.shape[:2]
        side = min(height, width) * rng.uniform(smallest, 1)
        h, w = (int(np.clip(side * np.exp(rng.normal(0, 0.2)), 8, n)) for n in (height, width))
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        method = cv2.INTER_AREA if min(h, w) > size else cv2.INTER_LINEAR
        crop = cv2.resize(image[y : y + h, x : x + w], (size, size), interpolation=method)
        return crop[:, :: rng.choice([-1, 1])].astype(np.float32) / 255

    def _background(self, size: int, rng: Rng) -> np.ndarray:
        kind = rng.random()
        if kind < 0.72:
            image = self.photo(size, rng)
        elif kind < 0.9:
            image = package_background(rng, size, size, held_out=False)[0].astype(np.float32)
        else:  # a wall, a sky, a studio: a color that drifts
            corners = rng.uniform(0, 1, 3) + rng.normal(0, 0.12, (2, 2, 3))
            image = cv2.resize(corners.astype(np.float32), (size, size)).clip(0, 1)
        if rng.random() < 0.15:  # clutter of two photographs
            image = image + (self.photo(size, rng) - image) * rng.uniform(0.2, 0.6)
        image = _recolor(image, rng)
        if rng.random() < 0.4:
            image = _blur(image, size * rng.uniform(0.004, 0.05))
        return image

    def _place(
        self, cutout: Cutout, size: int, box: np.ndarray, rng: Rng, behind: np.ndarray
    ) -> np.ndarray:
        """Draw an object into a box (x0, y0, x1, y1, also outside): premultiplied `[S, S, 4]`."""
        rgba = cutout.rgba
        if rng.random() < 0.5:
            rgba = rgba[:, ::-1]
        h, w = rgba.shape[:2]
        x0, y0, x1, y1 = box
        angle = rng.normal(0, 12) if rng.random() < 0.5 else 0.0
        if rng.random() < 0.08:
            angle = rng.uniform(-180, 180)
        reduction = min(w / max(x1 - x0, 1), h / max(y1 - y0, 1))
        if reduction > 1.5:
            target = (max(8, round(x1 - x0)), max(8, round(y1 - y0)))
            rgba = _resize_rgba(rgba, target)
            h, w = rgba.shape[:2]
        center = np.array([w / 2, h / 2])
        turn = cv2.getRotationMatrix2D((w / 2, h / 2), angle, 1)
        scale = np.array([(x1 - x0) / w, (y1 - y0) / h])
        matrix = scale[:, None] * turn
        matrix[:, 2] += np.array([(x0 + x1) / 2, (y0 + y1) / 2]) - scale * center
        alpha = rgba[..., 3:].astype(np.float32) / 255
        colors = rgba[..., :3].astype(np.float32) / 255
        colors = self._look(colors, alpha, behind, rng)
        layer = np.concatenate([colors * alpha, alpha], axis=-1)
        return cv2.warpAffine(layer, matrix, (size, size), flags=cv2.INTER_LINEAR)

    def _look(
        self, colors: np.ndarray, alpha: np.ndarray, behind: np.ndarray, rng: Rng
    ) -> np.ndarray:
        """Change the colors of an object, float32 `[h, w, 3]` in [0, 1]."""
        h, w = alpha.shape[:2]
        kind = rng.random()
        if kind < 0.22:  # the texture of a photograph, under the object's own light
            texture = self.photo(max(h, w), rng, 0.05)[:h, :w]
            if rng.random() < 0.3:  # the background's own, like a white shirt before a white wall
                texture = cv2.resize(np.roll(behind, rng.integers(9, 99), axis=1), (w, h))
            light = cv2.GaussianBlur(colors.mean(-1), (0, 0), max(h, w) * 0.03)[..., None]
            colors = texture * np.clip(0.4 + light, 0, 1.3)
        elif kind < 0.4:  # black, white or gray, shaded
            light = colors.mean(-1, keepdims=True)
            base = rng.choice([rng.uniform(0, 0.2), rng.uniform(0.75, 1), rng.uniform(0.2, 0.75)])
            contrast = rng.uniform(0.1, 0.6)
            colors = base + (light - light.mean()) * contrast + rng.normal(0, 0.02, 3)
        elif kind < 0.6:
            colors = colors[..., rng.permutation(3)]
        colors = _recolor(np.clip(colors, 0, 1).astype(np.float32), rng)
        if rng.random() < 0.25:  # the mean color of the background
            weight = alpha / max(float(alpha.sum()), 1.0)
            shift = behind.mean((0, 1)) - (colors * weight).sum((0, 1))
            colors = colors + shift * rng.uniform(0.4, 1)
        return np.clip(colors, 0, 1)

    # ------------------------------------------------------------------ scenes

    def draw(self, size: int, close: bool, rng: Rng) -> Scene:
        """Compose a scene.

        Args:
            size: Side in pixels.
            close: Whether the target fills the image up to a margin, as around a prompt.
            rng: Draws everything.
        """
        for _ in range(10):
            scene = self._draw(size, close, rng)
            visible = float(scene.alpha.mean())
            if 0.01 < visible < 0.97 and scene.alpha.max() > 0.25:
                return scene
        return scene

    def _draw(self, size: int, close: bool, rng: Rng) -> Scene:
        behind = self._background(size, rng)
        image = behind.copy()
        box = _target_box(size, close, rng)
        main = self._cutout(rng)
        parts = [(main, box)]
        if rng.random() < 0.25 and not main.transparent:  # touching objects, one target
            for _ in range(int(rng.integers(1, 3))):
                parts.append((self._cutout(rng), _neighbor(box, rng)))
        others = int(rng.choice([0, 1, 2, 4], p=[0.35, 0.3, 0.2, 0.15]))
        for _ in range(others):
            other = main if rng.random() < 0.25 else self._cutout(rng)
            where = _beside(box, size, rng) if rng.random() < 0.6 else _anywhere(size, rng)
            layer = self._place(other, size, where, rng, behind)
            image = layer[..., :3] + image * (1 - layer[..., 3:])
        if rng.random() < 0.2:  # everything behind is out of focus
            image = _blur(image, size * rng.uniform(0.005, 0.04))
        alpha = np.zeros((size, size), np.float32)
        front = np.zeros((size, size, 4), np.float32)
        for cutout, where in parts:
            layer = self._place(cutout, size, where, rng, behind)
            front = layer + front * (1 - layer[..., 3:])
        transparent = main.transparent
        if transparent or rng.random() < 0.03:
            front *= rng.uniform(0.35, 1.0) if transparent else rng.uniform(0.3, 0.7)
            transparent = True
        if rng.random() < 0.3:
            image = _shadow(image, front[..., 3], rng)
        if rng.random() < 0.12:
            front = _blur(front, size * rng.uniform(0.002, 0.012))
        image = front[..., :3] + image * (1 - front[..., 3:])
        alpha = front[..., 3]
        if rng.random() < 0.12:  # something in front
            layer = self._place(self._cutout(rng), size, _beside(box, size, rng), rng, behind)
            image = layer[..., :3] + image * (1 - layer[..., 3:])
            alpha = alpha * (1 - layer[..., 3])
        return Scene(_degrade(image, rng), np.clip(alpha, 0, 1), transparent, others)


def _target_box(size: int, close: bool, rng: Rng) -> np.ndarray:
    if close:  # around a prompt, with margins; some targets are cut off by the frame
        margins = rng.uniform(0.02, 0.24, 4)
        if rng.random() < 0.2:  # the target fills the image, so its box is uninformative
            margins = rng.uniform(-0.05, 0.04, 4)
        cut = rng.random(4) < 0.1
        margins = np.where(cut, -rng.uniform(0, 0.35, 4), margins)
        if rng.random() < 0.2:  # a portrait, cut off by the lower edge
            margins[3] = -rng.uniform(0, 0.4)
        return size * np.array([margins[0], margins[1], 1 - margins[2], 1 - margins[3]])
    extent = size * rng.uniform(0.25, 1.0) * np.exp(rng.normal(0, 0.15, 2))
    corner = rng.uniform(-0.15, 1.15, 2) * np.maximum(size - extent, 0.1 * size)
    return np.concatenate([corner, corner + extent])


def _neighbor(box: np.ndarray, rng: Rng) -> np.ndarray:
    """Return a box that lies mostly within another one."""
    extent = (box[2:] - box[:2]) * rng.uniform(0.3, 0.8, 2)
    corner = box[:2] + (box[2:] - box[:2] - extent) * rng.uniform(-0.1, 1.1, 2)
    return np.concatenate([corner, corner + extent])


def _beside(box: np.ndarray, size: int, rng: Rng) -> np.ndarray:
    """Return a box whose center is near the border of another one."""
    extent = (box[2:] - box[:2]) * rng.uniform(0.3, 1.0, 2)
    center = (box[:2] + box[2:]) / 2
    direction = rng.normal(size=2)
    direction /= np.abs(direction).max() + 1e-6
    center = center + direction * ((box[2:] - box[:2]) / 2 + extent * rng.uniform(0.05, 0.5))
    return np.concatenate([center - extent / 2, center + extent / 2])


def _anywhere(size: int, rng: Rng) -> np.ndarray:
    extent = size * rng.uniform(0.15, 0.8, 2)
    corner = rng.uniform(-0.2, 1.0, 2) * size
    return np.concatenate([corner, corner + extent])


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), max(0.3, sigma))


def _shadow(image: np.ndarray, alpha: np.ndarray, rng: Rng) -> np.ndarray:
    size = len(alpha)
    shift = np.float32([[1, 0, rng.normal(0, 0.06) * size], [0, 1, rng.uniform(0, 0.08) * size]])
    shade = _blur(cv2.warpAffine(alpha, shift, (size, size)), size * rng.uniform(0.01, 0.06))
    return image * (1 - rng.uniform(0.2, 0.7) * shade[..., None])


def _recolor(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Vary saturation, color cast, brightness and gamma: float32 in [0, 1]."""
    saturation = rng.uniform(0.4, 1.4)
    mix = np.full((3, 3), (1 - saturation) / 3) + saturation * np.eye(3)
    mix *= (rng.uniform(0.85, 1.15, 3) * rng.uniform(0.75, 1.2))[:, None]
    image = np.clip(cv2.transform(np.asarray(image, np.float32), mix), 0, 1)
    return cv2.pow(image, float(np.exp(rng.normal(0, 0.25))))


def _degrade(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Add the artifacts of cameras and image files."""
    size = len(image)
    if rng.random() < 0.5:
        image = _recolor(np.clip(image, 0, 1), rng)
    if rng.random() < 0.08:
        image = cv2.transform(np.asarray(image, np.float32), np.full((3, 3), 1 / 3))
    if rng.random() < 0.15:
        small = cv2.resize(image, (int(size * rng.uniform(0.5, 0.9)),) * 2)
        image = cv2.resize(small, (size, size))
    if rng.random() < 0.4:
        image = image + rng.normal(0, rng.uniform(0.003, 0.04), image.shape).astype(np.float32)
    image = np.clip(image, 0, 1)
    if rng.random() < 0.3:
        pixels = (image * 255).astype(np.uint8)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))]
        pixels = cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_COLOR)
        image = pixels.astype(np.float32) / 255
    return np.ascontiguousarray(image, np.float32)


# -------------------------------------------------------------------- prompts


def draw_prompt(scene: Scene, name: str, rng: Rng):
    """Draw a prompt (`bbox_mask`, `point_mask` or `mask`) of a scene."""
    size, alpha = len(scene.alpha), scene.alpha
    if name == "bbox_mask":
        return box_prompt(alpha, rng, 0.03, 0.08 if rng.random() < 0.3 else 0.0)
    if name == "point_mask":
        solid = np.argwhere(alpha > 0.8)[:, ::-1]
        chosen = rng.permutation(len(solid))[: rng.integers(1, 11)]
        return prompt_of_points([tuple(solid[i]) for i in chosen], alpha.shape, size / 20)
    return mask_prompt(alpha, rng, (max(2, size // 40), max(3, size // 14)))
