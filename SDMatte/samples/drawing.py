"""Drawing primitives with exact coverage: polygons, strands, noise, surfaces, lighting, layers.

Coordinates are (x, y) in pixels of the final image; (0, 0) is the top-left corner of the first
pixel. Shapes are filled on a grid `SCALE` times finer and averaged down, so coverage is the
fraction of each pixel that the shape covers.
"""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

SCALE = 4
_SHIFT = 4

Rng = np.random.Generator
Textures = Sequence[np.ndarray]  # photographs, each [H, W, 3] uint8


class Painting:
    """A flattened stack of layers, premultiplied so that uncovered areas contribute no color.

    Attributes:
        premul: `[h, w, 3]` float32, color times alpha.
        alpha: `[h, w]` float32 in [0, 1].
    """

    def __init__(self, h: int, w: int):
        self.premul = np.zeros((h, w, 3), np.float32)
        self.alpha = np.zeros((h, w), np.float32)

    def add(self, cover: np.ndarray, color: np.ndarray | Sequence[float]) -> None:
        """Composite a color (`[3]` or `[h, w, 3]`) on top with alpha `cover` (`[h, w]`)."""
        x, y, w, h = cv2.boundingRect((cover > 0).view(np.uint8))
        part = np.s_[y : y + h, x : x + w]  # most layers are small
        color, cover = np.asarray(color, np.float32), cover[part].astype(np.float32)
        color = color[part] if color.ndim == 3 else color
        self.premul[part] += (color - self.premul[part]) * cover[..., None]
        self.alpha[part] += (1 - self.alpha[part]) * cover

    def cut(self, cover: np.ndarray) -> None:
        """Erase with alpha `cover`, `[h, w]` in [0, 1]."""
        self.premul *= (1 - cover)[..., None]
        self.alpha *= 1 - cover

    def relight(self, factor: np.ndarray) -> None:
        """Multiply the colors by `factor`, `[h, w]`."""
        self.premul = np.minimum(self.premul * factor[..., None], self.alpha[..., None])

    def color(self) -> np.ndarray:
        """Return straight colors, extrapolated from nearby pixels where alpha is zero.

        Returns:
            `[h, w, 3]` float32 in [0, 1].
        """
        h, w = self.alpha.shape
        premul, alpha = self.premul, self.alpha[..., None]
        levels = [(premul, alpha)]
        while min(premul.shape[:2]) > 2:
            half = (max(1, premul.shape[1] // 2), max(1, premul.shape[0] // 2))
            premul = cv2.resize(premul, half, interpolation=cv2.INTER_AREA)
            alpha = cv2.resize(alpha, half, interpolation=cv2.INTER_AREA)[..., None]
            levels.append((premul, alpha))
        filled = premul.sum((0, 1)) / max(float(alpha.sum()), 1e-6) * np.ones_like(premul)
        for premul, alpha in reversed(levels):
            size = (premul.shape[1], premul.shape[0])
            filled = cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR)
            trust = np.clip(alpha * 16, 0, 1)
            filled += (premul / np.maximum(alpha, 1e-4) - filled) * trust
        return np.clip(filled.reshape(h, w, 3), 0, 1)


def fill(h: int, w: int, polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Return the coverage, `[h, w]` in [0, 1], of the union of polygons, each `[n, 2]`."""
    fine, part, corner = _fine_grid(h, w, np.concatenate(polygons))
    for polygon in polygons:
        cv2.fillPoly(fine, [_fixed(polygon - corner)], 255, cv2.LINE_8, _SHIFT)
    return _averaged(fine, h, w, part)


def fill_quads(h: int, w: int, quads: np.ndarray) -> np.ndarray:
    """Return the coverage, `[h, w]` in [0, 1], of the union of convex quads, `[n, 4, 2]`."""
    fine, part, corner = _fine_grid(h, w, quads.reshape(-1, 2))
    for quad in _fixed(quads - corner):
        cv2.fillConvexPoly(fine, quad, 255, cv2.LINE_8, _SHIFT)
    return _averaged(fine, h, w, part)


def _fine_grid(h: int, w: int, points: np.ndarray) -> tuple[np.ndarray, tuple, np.ndarray]:
    """Return a supersampled grid around the points, its slice of the image, and its corner."""
    low = np.clip(np.floor(points.min(0)) - 1, 0, (w - 1, h - 1)).astype(int)
    high = np.clip(np.ceil(points.max(0)) + 1, low + 1, (w, h)).astype(int)
    size = (high - low)[::-1] * SCALE
    return np.zeros(size, np.uint8), np.s_[low[1] : high[1], low[0] : high[0]], low


def _fixed(points: np.ndarray) -> np.ndarray:
    # OpenCV has pixel centers at integers, this module at half-integers.
    return np.round((points * SCALE - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _averaged(fine: np.ndarray, h: int, w: int, part: tuple) -> np.ndarray:
    size = (fine.shape[1] // SCALE, fine.shape[0] // SCALE)
    out = np.zeros((h, w), np.float32)
    out[part] = cv2.resize(fine, size, interpolation=cv2.INTER_AREA) / np.float32(255)
    return out


def ribbons(paths: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return quads, `[n * (t - 1), 4, 2]`, along polylines, `[n, t, 2]`, `widths` pixels wide."""
    along = np.gradient(paths, axis=1)
    along /= np.linalg.norm(along, axis=-1, keepdims=True) + 1e-6
    half = np.broadcast_to(widths, paths.shape[:2])[..., None] / 2
    side = np.stack((-along[..., 1], along[..., 0]), -1) * half
    left, right = paths + side, paths - side
    quads = np.stack((left[:, :-1], left[:, 1:], right[:, 1:], right[:, :-1]), 2)
    return quads.reshape(-1, 4, 2)


def strands(
    rng: Rng,
    roots: np.ndarray,
    angles: np.ndarray,
    lengths: np.ndarray,
    *,
    width: float,
    curl: float = 0.6,
    wave: float = 0.0,
    gravity: float = 0.0,
    steps: int = 9,
) -> np.ndarray:
    """Return curved, tapered strands of hair.

    Args:
        rng: Random generator.
        roots: Start points, `[n, 2]`.
        angles: Initial directions in radians, y pointing down, `[n]`.
        lengths: Pixels, `[n]`.
        width: Width at the root in pixels.
        curl: Standard deviation of the total turn in radians.
        wave: Amplitude of the waves in radians.
        gravity: How far the tip drops, in multiples of the length.
        steps: Points per strand.

    Returns:
        Quads, `[n, steps - 1, 4, 2]`.
    """
    n, t = len(roots), np.linspace(0, 1, steps)
    turn = rng.normal(0, curl, (n, 1)) * t
    turn = turn + wave * np.sin(t * rng.uniform(8, 14, (n, 1)) + rng.uniform(0, 6.3, (n, 1)))
    heading = angles[:, None] + turn
    step = np.stack((np.cos(heading), np.sin(heading) + 2 * gravity * t), -1)
    path = np.cumsum(step, 1) - step[:, :1]
    path = roots[:, None] + path * (lengths / (steps - 1))[:, None, None]
    taper = width * (1 - 0.92 * t) * rng.uniform(0.6, 1.3, (n, 1))
    return ribbons(path, taper).reshape(n, steps - 1, 4, 2)


def blob(
    rng: Rng, x: float, y: float, rx: float, ry: float, *, rough: float = 0.12, n: int = 160
) -> np.ndarray:
    """Return a closed smooth outline around (x, y), `[n, 2]`; an ellipse if `rough` is 0."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    k = np.arange(2, 7)[:, None]
    waves = rng.normal(0, rough, (5, 1)) / (k - 1) * np.cos(k * t + rng.uniform(0, 6.3, (5, 1)))
    r = 1 + waves.sum(0)
    return np.stack((x + rx * r * np.cos(t), y + ry * r * np.sin(t)), -1)


def capsule(a: Sequence[float], b: Sequence[float], ra: float, rb: float) -> np.ndarray:
    """Return the outline, `[n, 2]`, of a limb from `a` to `b` with end radii `ra` and `rb`."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    heading = np.arctan2(b[1] - a[1], b[0] - a[0])
    t = np.linspace(-np.pi / 2, np.pi / 2, 14)
    end_b = b + rb * np.stack((np.cos(heading + t), np.sin(heading + t)), -1)
    end_a = a - ra * np.stack((np.cos(heading + t), np.sin(heading + t)), -1)
    return np.concatenate((end_b, end_a))


def leaf(base: np.ndarray, angle: float, length: float, slim: float) -> tuple[np.ndarray, ...]:
    """Return a leaf's outline, `[32, 2]`, and vein, `[16, 2]`; `slim` is half width / length."""
    t = np.linspace(0, 1, 16)
    half = np.sin(np.pi * t**0.8) * slim * length
    top, low = np.stack((t * length, half), -1), np.stack((t * length, -half), -1)[::-1]
    outline = rotate(np.concatenate((top, low)), angle, (0, 0)) + base
    vein = rotate(np.stack((t * length * 0.95, 0 * t), -1), angle, (0, 0)) + base
    return outline, vein


def rotate(points: np.ndarray, angle: float, center: Sequence[float]) -> np.ndarray:
    """Rotate points, `[..., 2]`, by `angle` radians about `center`."""
    c, s = np.cos(angle), np.sin(angle)
    return (points - center) @ np.array([[c, s], [-s, c]]) + center


def noise(rng: Rng, h: int, w: int, cells: float = 4, octaves: int = 4) -> np.ndarray:
    """Return fractal noise, `[h, w]` in [0, 1]; octave 0 has `cells` bumps on the longer side."""
    out = np.zeros((h, w), np.float32)
    for o in range(octaves):
        per = max(h, w) / (cells * 2**o)
        grid = rng.normal(0, 1, (int(h / per) + 3, int(w / per) + 3)).astype(np.float32)
        out += cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC) * 0.55**o
    return np.clip(out / 4 + 0.5, 0, 1)


def hsv(h: float, s: float, v: float) -> np.ndarray:
    """Return an RGB color, `[3]` in [0, 1]; the hue wraps at 1, the others are clipped."""
    return np.array(
        colorsys.hsv_to_rgb(h % 1, float(np.clip(s, 0, 1)), float(np.clip(v, 0, 1))), np.float32
    )


def hair_tone(rng: Rng) -> np.ndarray:
    """Draw a random color of hair or fur, occasionally a dyed one."""
    if rng.random() < 0.15:
        return hsv(rng.random(), rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.9))
    return hsv(rng.normal(0.07, 0.025), rng.uniform(0.05, 0.7), rng.uniform(0.08, 0.9))


def surface(
    rng: Rng, h: int, w: int, textures: Textures = (), *, base: np.ndarray | None = None
) -> np.ndarray:
    """Draw a coherent colored texture, `[h, w, 3]` float32 in [0, 1].

    Without a main color `base`, `[3]`, the texture may be a crop of a photograph, so that a network
    cannot separate foreground from background by texture statistics alone.
    """
    hue, sat, val = rng.random(), rng.beta(1.4, 2.4), rng.uniform(0.15, 0.95)
    a = hsv(hue, sat, val) if base is None else np.asarray(base, np.float32)
    if rng.random() < 0.6:
        b = a * rng.uniform(0.35, 1.5)
    else:
        b = hsv(hue + rng.normal(0, 0.25), rng.beta(1.6, 2), rng.uniform(0.15, 1))
    y, x = (axis.astype(np.float32) / max(h, w) for axis in np.ogrid[:h, :w])
    angle = np.float32(rng.uniform(0, np.pi))
    across = np.cos(angle) * x + np.sin(angle) * y
    pattern = rng.choice(["gradient", "clouds", "stripes", "spots", "plaid", "photo", "photo"])
    if pattern == "photo" and len(textures) and base is None:
        return _photo_surface(rng, h, w, textures[rng.integers(len(textures))], a)
    if pattern == "stripes":
        mix = np.sin((across + 0.04 * noise(rng, h, w, 4, 2)) * rng.uniform(25, 140)) * 2 + 0.5
    elif pattern == "spots":
        mix = (noise(rng, h, w, rng.uniform(8, 40), 1) - rng.uniform(0.5, 0.7)) * 14
    elif pattern == "plaid":
        k = rng.uniform(25, 90)
        mix = (np.sin(x * k) > 0.3) * 0.5 + (np.sin(y * k) > 0.3) * 0.5
    elif pattern == "clouds":
        mix = noise(rng, h, w, rng.uniform(2, 12), 5) * 2.4 - 0.7
    else:
        mix = (across - across.min()) / (np.ptp(across) + 1e-6)
    mix = np.clip(mix, 0, 1)[..., None].astype(np.float32)
    color = a + (b - a) * mix
    color *= 0.85 + 0.3 * noise(rng, h, w, rng.uniform(3, 30), 3)[..., None]
    return np.clip(color, 0, 1, out=color)


def _photo_surface(rng: Rng, h: int, w: int, photo: np.ndarray, tint: np.ndarray) -> np.ndarray:
    side = int(min(photo.shape[:2]) * rng.uniform(0.35, 0.8))
    y = rng.integers(photo.shape[0] - side + 1)
    x = rng.integers(photo.shape[1] - side + 1)
    crop = cv2.resize(photo[y : y + side, x : x + side], (w, h), interpolation=cv2.INTER_LINEAR)
    crop = crop.astype(np.float32) / 255
    if rng.random() < 0.6:  # keep the structure, replace the color
        gray = crop.mean(-1, keepdims=True)
        crop = tint * (0.4 + 1.2 * gray / (2 * gray.mean() + 1e-3))
    return np.clip(crop, 0, 1)


def light(rng: Rng, alpha: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Return shading factors around 1, `[h, w]`, for a rounded body with this coverage."""
    h, w = alpha.shape
    small = cv2.resize(alpha, (max(8, w // 4), max(8, h // 4)), interpolation=cv2.INTER_AREA)
    height = sum(cv2.GaussianBlur(small, (0, 0), min(small.shape) / d) for d in (40, 18, 9))
    gy, gx = np.gradient(height * min(small.shape) / 12)
    angle = rng.uniform(-np.pi, 0)  # from above
    slope = gx * np.cos(angle) + gy * np.sin(angle)
    factor = 1.05 - strength * np.tanh(2 * slope) - 0.25 * strength * np.hypot(gx, gy)
    return cv2.resize(np.clip(factor, 0.35, 1.6).astype(np.float32), (w, h))


def soften(image: np.ndarray, radius: float) -> np.ndarray:
    """Blur a float32 image with a disc of `radius` pixels, like a defocused lens."""
    r = int(np.ceil(radius))
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
