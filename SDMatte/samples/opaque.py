"""Objects with mostly opaque interiors: solids, figures, nets, rings, text, plants, fish."""

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from SDMatte.samples.drawing import (
    SCALE,
    Painting,
    Rng,
    Textures,
    blob,
    capsule,
    fill,
    fill_quads,
    hair_tone,
    hsv,
    leaf,
    light,
    noise,
    ribbons,
    rotate,
    soften,
    surface,
)
from SDMatte.samples.photos import packaged_file


def _smooth_shape(rng: Rng, x: float, y: float, r: float) -> np.ndarray:
    """Return the outline of a blob, a superellipse or a star."""
    form = rng.choice(["blob", "super", "star"])
    rx, ry = r * rng.uniform(0.6, 1.1, 2)
    if form == "blob":
        return blob(rng, x, y, rx, ry, rough=0.16)
    t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    if form == "super":
        e = rng.uniform(0.25, 1.1)
        c, s = np.cos(t), np.sin(t)
        points = np.stack((np.sign(c) * abs(c) ** e * rx, np.sign(s) * abs(s) ** e * ry), -1)
    else:
        spikes = 1 + rng.uniform(0.15, 0.45) * np.cos(t * rng.integers(3, 9))
        points = np.stack((rx * spikes * np.cos(t), ry * spikes * np.sin(t)), -1) * 0.85
    return rotate(points, rng.uniform(0, 6.3), (0, 0)) + (x, y)


def solid(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw one to three overlapping simple bodies, sometimes with a hole."""
    p, s = Painting(h, w), min(h, w)
    x, y, r = w * rng.uniform(0.4, 0.6), h * rng.uniform(0.4, 0.6), s * rng.uniform(0.24, 0.42)
    for _ in range(int(rng.integers(1, 4))):
        part = fill(h, w, [_smooth_shape(rng, x, y, r)])
        p.add(part, surface(rng, h, w, textures) * light(rng, part)[..., None])
        x, y = np.array((x, y)) + rng.normal(0, r * 0.5, 2)
        r *= rng.uniform(0.4, 0.8)
    if rng.random() < 0.3:
        p.cut(fill(h, w, [_smooth_shape(rng, w / 2, h / 2, s * rng.uniform(0.05, 0.14))]))
    return p


def defocus(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a solid out of focus, uniformly or only in parts."""
    p = solid(rng, h, w, textures)
    radius = min(h, w) * rng.uniform(0.012, 0.045)
    premul, alpha = soften(p.premul, radius), soften(p.alpha, radius)
    if rng.random() < 0.5:
        blur = np.clip(noise(rng, h, w, 1.5, 1) * 5 - 1.7, 0, 1)
        premul = p.premul + (premul - p.premul) * blur[..., None]
        alpha = p.alpha + (alpha - p.alpha) * blur
    p.premul, p.alpha = premul, alpha
    return p


def figure(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a standing or dancing human figure, with or without a skirt."""
    p, s = Painting(h, w), h * 0.95
    x, y, u = w / 2, h * 0.5, s * rng.uniform(0.095, 0.12)
    skin = hsv(rng.normal(0.06, 0.02), rng.uniform(0.2, 0.7), rng.uniform(0.3, 0.95))
    shirt, trousers = surface(rng, h, w, textures), surface(rng, h, w, textures)
    lean = rng.normal(0, 0.15)

    def limb(start, angles, lengths, radii, colors):
        for a, length, (ra, rb), color in zip(angles, lengths, radii, colors, strict=True):
            end = start + length * np.array((np.sin(a), np.cos(a)))
            part = fill(h, w, [capsule(start, end, ra, rb)])
            p.add(part, color * light(rng, part, 0.35)[..., None])
            start = end
        return start

    hip = np.array((x, y + u * 0.8))
    chest = hip + 2.2 * u * np.array((np.sin(lean), -np.cos(lean)))
    for side in (-1, 1):
        a = side * rng.uniform(0.05, 0.6)
        foot = limb(hip + (side * u * 0.35, 0), (a, a - side * rng.uniform(0, 0.5)),
                    (1.7 * u, 1.7 * u), ((0.5 * u, 0.36 * u), (0.34 * u, 0.22 * u)),
                    (trousers, trousers))  # fmt: skip
        limb(foot, (side * 1.3,), (0.45 * u,), ((0.22 * u, 0.16 * u),), (skin * 0.3,))
    if rng.random() < 0.35:
        skirt = np.array([hip + (-0.6 * u, -u), hip + (0.6 * u, -u),
                          hip + (1.7 * u, 1.6 * u), hip + (-1.7 * u, 1.5 * u)])  # fmt: skip
        p.add(fill(h, w, [skirt]), shirt * 0.9)
    torso = fill(h, w, [capsule(hip, chest, 0.65 * u, 0.75 * u)])
    p.add(torso, shirt * light(rng, torso, 0.5)[..., None])
    for side in (-1, 1):
        a = side * rng.uniform(0.2, 2.3)
        limb(chest + (side * 0.65 * u, -0.1 * u), (a, a + side * rng.uniform(-0.3, 1.2)),
             (1.3 * u, 1.25 * u), ((0.33 * u, 0.25 * u), (0.24 * u, 0.16 * u)),
             (shirt, skin * np.ones((h, w, 1), np.float32)))  # fmt: skip
    head = chest + 1.6 * u * np.array((np.sin(lean), -np.cos(lean)))
    p.add(fill(h, w, [capsule(chest, head, 0.25 * u, 0.25 * u)]), skin * 0.8)
    tone = hair_tone(rng)
    p.add(fill(h, w, [blob(rng, head[0], head[1] - u * 0.12, u * 0.66, u * 0.72)]), tone * 0.8)
    p.add(fill(h, w, [blob(rng, head[0], head[1] + u * 0.1, u * 0.5, u * 0.6, rough=0.02)]), skin)
    return p


def net(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a net, grid or fence, with or without a frame."""
    p, s = Painting(h, w), min(h, w)
    center = np.array((w / 2, h / 2)) + rng.normal(0, s * 0.03, 2)
    half = s * rng.uniform(0.28, 0.44, 2)
    gap, width = s * rng.uniform(0.045, 0.12), s * rng.uniform(0.008, 0.022)
    warp = np.stack((noise(rng, h, w, 3, 2), noise(rng, h, w, 3, 2)), -1) - 0.5
    sag, turn, skew = s * rng.uniform(0, 0.15), rng.uniform(0, np.pi), rng.uniform(1.1, 1.57)
    t = np.linspace(-1.2, 1.2, 40) * s * 0.6
    paths = []
    for angle in (turn, turn + skew):
        offsets = np.arange(-0.7 * s, 0.7 * s, gap)
        across = np.array((-np.sin(angle), np.cos(angle)))
        along = np.array((np.cos(angle), np.sin(angle)))
        paths.append(center + offsets[:, None, None] * across + t[:, None] * along)
    paths = np.concatenate(paths)
    index = np.clip(paths, 0, (w - 1, h - 1)).astype(int)
    paths = paths + sag * warp[index[..., 1], index[..., 0]]
    outline = blob(rng, *center, *half, rough=0.06)
    if rng.random() < 0.6:
        corner = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        outline = rotate(corner * half, rng.normal(0, 0.2), (0, 0)) + center
    lines = fill_quads(h, w, ribbons(paths, np.array(width))) * fill(h, w, [outline])
    color = surface(rng, h, w, textures)
    p.add(lines, color)
    if rng.random() < 0.7:
        closed = np.concatenate((outline, outline[:2]))[None]
        thick = np.array(width * rng.uniform(1.5, 5))
        p.add(fill_quads(h, w, ribbons(closed, thick)), surface(rng, h, w, textures))
    p.relight(0.7 + 0.6 * noise(rng, h, w, 20, 2))
    return p


def _ring(x: float, y: float, rx: float, ry: float, turn: float, width: float) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 90)
    path = np.stack((x + rx * np.cos(t), y + ry * np.sin(t)), -1)
    return ribbons(rotate(path, turn, (x, y))[None], np.array(width))


def rings(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw linked rings, or a plate with many holes."""
    p, s = Painting(h, w), min(h, w)
    if rng.random() < 0.5:
        path, edge = np.array((w, h)) * rng.uniform(0.35, 0.65, 2), s * 0.25
        for _ in range(int(rng.integers(2, 8))):
            rx, ry = s * rng.uniform(0.1, 0.24, 2)
            ring = _ring(*path, rx, ry, rng.random() * 3, s * rng.uniform(0.02, 0.06))
            part = fill_quads(h, w, ring)
            p.add(part, surface(rng, h, w, textures) * light(rng, part, 0.6)[..., None])
            path = np.clip(path + s * 0.22 * rng.normal(0, 1, 2), edge, (w - edge, h - edge))
        return p
    plate = fill(h, w, [_smooth_shape(rng, w / 2, h / 2, s * 0.44)])
    p.add(plate, surface(rng, h, w, textures) * light(rng, plate)[..., None])
    gap, turn = s * rng.uniform(0.09, 0.2), rng.uniform(0, 3)
    spots = np.stack(np.meshgrid(np.arange(-5, 6), np.arange(-5, 6)), -1).reshape(-1, 2) * gap
    spots = rotate(spots + rng.normal(0, gap * 0.07, spots.shape), turn, (0, 0)) + (w / 2, h / 2)
    r = gap * rng.uniform(0.24, 0.4)
    p.cut(fill(h, w, [blob(rng, *c, r * rng.uniform(0.8, 1.1), r, rough=0.05) for c in spots]))
    return p


_FONTS = "DejaVuSans-Bold DejaVuSerif-Bold DejaVuSans STIXGeneralBolIta cmb10 cmss10".split()


@lru_cache(maxsize=64)
def _font(index: int, size: int) -> ImageFont.FreeTypeFont:
    """Load a font shipped with matplotlib, or Pillow's default."""
    path = packaged_file("matplotlib", f"mpl-data/fonts/ttf/{_FONTS[index]}.ttf")
    return ImageFont.truetype(str(path), size) if path else ImageFont.load_default(size)


def text(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw one to three short lines of large letters."""
    p, s = Painting(h, w), min(h, w) * SCALE
    page = Image.new("L", (w * SCALE, h * SCALE))
    rows = int(rng.integers(1, 4))
    letters = np.array(list("ABCDEFGHKLMNPRSTUVXYZabdefghkmnrstuy2345689&?"))
    lines = ["".join(rng.choice(letters, rng.integers(2, 6))) for _ in range(rows)]
    index = int(rng.integers(len(_FONTS)))
    font = _font(index, 100)
    wide = max(font.getlength(line) for line in lines)
    size = int(min(100 * 0.82 * s / wide, 0.72 * s / rows))
    draw, middle = ImageDraw.Draw(page), (w * SCALE / 2, h * SCALE / 2)
    draw.multiline_text(middle, "\n".join(lines), 255, _font(index, size), "mm", align="center")
    turn = cv2.getRotationMatrix2D(middle, rng.normal(0, 12), 1)
    fine = cv2.warpAffine(np.asarray(page), turn, page.size)
    cover = cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    p.add(cover, surface(rng, h, w, textures))
    if rng.random() < 0.5:
        p.relight(light(rng, cover, 0.7))
    return p


def leaves(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a plant: stems from one base, with leaves on both sides."""
    p, s = Painting(h, w), min(h, w)
    foot = np.array((w * rng.uniform(0.4, 0.6), h * rng.uniform(0.9, 1.02)))
    hue = rng.normal(0.28, 0.06) if rng.random() < 0.75 else rng.random()
    stem_tone = hsv(hue - 0.1, 0.6, rng.uniform(0.2, 0.6))
    slim, length = rng.uniform(0.1, 0.3), s * rng.uniform(0.12, 0.24)
    texture = (0.6 + 0.8 * noise(rng, h, w, 30, 3))[..., None]
    t, blades = np.linspace(0, 1, 24), []
    for _ in range(int(rng.integers(2, 6))):
        angle = rng.normal(-np.pi / 2, 0.35) + rng.normal(0, 0.9) * t
        step = np.stack((np.cos(angle), np.sin(angle)), -1) * h * rng.uniform(0.5, 0.82) / 24
        stem = foot + np.cumsum(step, 0)
        p.add(fill_quads(h, w, ribbons(stem[None], s * 0.014 * (1 - 0.8 * t)[None])), stem_tone)
        for k in range(3, 24, int(rng.integers(2, 4))):
            for side in (-1, 1):
                size = length * rng.uniform(0.6, 1.1) * (1.15 - 0.6 * t[k])
                blades.append(leaf(stem[k], angle[k] + side * rng.normal(0.9, 0.2), size, slim))
    rng.shuffle(blades)
    for start in range(0, len(blades), 6):
        outlines, veins = zip(*blades[start : start + 6], strict=True)
        tone = hsv(hue + rng.normal(0, 0.03), rng.uniform(0.4, 0.9), rng.uniform(0.2, 0.8))
        p.add(fill(h, w, outlines), tone * texture)
        p.add(fill_quads(h, w, ribbons(np.stack(veins), np.array(s * 0.005))) * 0.6, tone * 1.2)
    return p


def wheel(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a bicycle wheel, seen frontally or at an angle."""
    p, s = Painting(h, w), min(h, w)
    x, y, r = w / 2, h / 2, s * rng.uniform(0.34, 0.44)
    squeeze, turn = rng.uniform(0.55, 1), rng.uniform(0, 3.1)
    rubber = _ring(x, y, r, r * squeeze, turn, s * rng.uniform(0.03, 0.06))
    p.add(fill_quads(h, w, rubber), surface(rng, h, w, textures) * 0.6)
    rim = _ring(x, y, r * 0.92, r * 0.92 * squeeze, turn, s * 0.02)
    p.add(fill_quads(h, w, rim), (0.7, 0.7, 0.72))
    n = int(rng.integers(8, 20)) * 2
    at = np.arange(n) * 2 * np.pi / n
    hub = at + np.where(np.arange(n) % 2, 1, -1) * rng.uniform(0, 1.3)
    ring = np.stack((np.cos(at), squeeze * np.sin(at)), -1) * r * 0.92
    core = np.stack((np.cos(hub), squeeze * np.sin(hub)), -1) * r * 0.12
    spokes = rotate(np.stack((core, ring), 1), turn, (0, 0)) + (x, y)
    shine = surface(rng, h, w, base=np.array((0.7, 0.7, 0.72)))
    p.add(fill_quads(h, w, ribbons(spokes, np.array(s * rng.uniform(0.004, 0.009)))), shine)
    p.add(fill(h, w, [blob(rng, x, y, r * 0.15, r * 0.15 * squeeze, rough=0.01)]), shine * 0.7)
    p.relight(0.7 + 0.6 * noise(rng, h, w, 6, 3))
    return p


def fish(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a fish with scales and semi-transparent, rayed fins."""
    p, s = Painting(h, w), min(h, w)
    x, y, rx = w * 0.47, h * rng.uniform(0.42, 0.58), s * rng.uniform(0.27, 0.34)
    ry, end = rx * rng.uniform(0.45, 0.75), x + rx * 0.92
    tips = end + rx * np.array((-0.2, 0.5, 0.3, 0.5))
    tail = np.stack((tips, y + ry * np.array((0, -1, 0, 1)) * rng.uniform(0.5, 1, 4)), -1)
    t = np.linspace(0, np.pi, 30)
    fins = [tail]
    for side in (-1, 1):
        height = ry * (0.8 + rng.uniform(0.2, 0.6) * np.sin(t) ** 0.7)
        fins.append(np.stack((x + rx * rng.uniform(0.4, 0.6) * np.cos(t), y + side * height), -1))
    rows, columns = np.mgrid[:h, :w].astype(np.float32)
    rays = np.sin(np.arctan2(rows - y, columns - x) * rng.integers(60, 110)) * 0.2 + 0.75
    tone = surface(rng, h, w, textures)
    p.add(fill(h, w, fins) * rays, tone * rng.uniform(0.6, 1.1))
    body = fill(h, w, [blob(rng, x, y, rx, ry, rough=0.03)])
    gap = s * rng.uniform(0.02, 0.04)
    scales = np.hypot((columns + gap * (rows // gap % 2) / 2) % gap - gap / 2, rows % gap) / gap
    p.add(body, tone * (0.6 + 0.6 * scales)[..., None] * light(rng, body, 0.7)[..., None])
    eye = (x - rx * 0.65, y - ry * 0.15)
    for r, color in ((0.11, (0.95, 0.9, 0.7)), (0.06, (0.03, 0.03, 0.03))):
        p.add(fill(h, w, [blob(rng, *eye, rx * r, rx * r, rough=0)]), color)
    return p
