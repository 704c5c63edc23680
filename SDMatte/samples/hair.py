"""Objects with fine strands: hair, fur, feathers, trees."""

import numpy as np

from SDMatte.samples.drawing import (
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
    strands,
    surface,
)


def _add_strands(p: Painting, rng: Rng, quads: np.ndarray, tone: np.ndarray) -> None:
    """Composite strands, `[n, t, 4, 2]`, in layers from dark and dense to bright and sparse."""
    h, w = p.alpha.shape
    layers = [(0.55, 1.0), (0.8, 1.0), (1.0, 0.9), (1.2, 0.75), (1.45, 0.55)]
    for part, (shade, opacity) in zip(np.array_split(quads, len(layers)), layers, strict=True):
        cover = fill_quads(h, w, part.reshape(-1, 4, 2))
        p.add(cover * opacity, np.clip(tone * shade * rng.uniform(0.9, 1.1, 3), 0, 1))


def hair(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a head-and-shoulders portrait with loose hair."""
    p, s = Painting(h, w), min(h, w)
    x, y = w * rng.uniform(0.43, 0.57), h * rng.uniform(0.36, 0.46)
    rx = s * rng.uniform(0.13, 0.18)
    ry = rx * rng.uniform(1.2, 1.4)
    tone, style = hair_tone(rng), rng.choice(["long", "long", "short", "curly"])
    n = {"long": 800, "short": 800, "curly": 650}[style]
    theta = rng.uniform(-np.pi - 0.45, 0.45, n)
    depth = np.sqrt(rng.uniform(0.5, 1.1, (n, 1)))
    roots = np.stack((x + rx * np.cos(theta), y + ry * np.sin(theta)), -1)
    roots = (roots - (x, y)) * depth + (x, y)
    angles = theta + rng.normal(0, 0.35, n) + rng.normal(0, 0.15)
    lengths = rx * rng.lognormal(0, 0.25, n)
    how = {
        "long": {"gravity": rng.uniform(1.2, 2.6), "curl": 0.4, "wave": rng.uniform(0, 0.4)},
        "short": {"gravity": rng.uniform(0, 0.3), "curl": 0.7, "wave": 0.1},
        "curly": {"gravity": rng.uniform(0, 0.5), "curl": 1.2, "wave": rng.uniform(0.8, 1.6)},
    }[style]
    lengths *= {"long": rng.uniform(1.0, 1.7), "short": rng.uniform(0.4, 0.9), "curly": 1.1}[style]
    width = s / 384 * rng.uniform(1.6, 3)
    skin = hsv(rng.normal(0.06, 0.015), rng.uniform(0.25, 0.65), rng.uniform(0.3, 0.97))
    cap = blob(rng, x, y - ry * 0.08, rx * 1.12, ry * 1.05, rough=0.05)
    p.add(fill(h, w, [cap]), tone * 0.5)
    quads = strands(rng, roots, angles, lengths, width=width, steps=11, **how)
    _add_strands(p, rng, quads, tone)
    shoulder = y + ry * rng.uniform(1.35, 1.6)
    bust = blob(rng, x, shoulder + s * 0.5, s * rng.uniform(0.3, 0.42), s * 0.5, rough=0.02)
    neck = capsule((x, y + ry * 0.5), (x, shoulder + ry * 0.2), rx * 0.55, rx * 0.65)
    p.add(fill(h, w, [neck]), skin * 0.75)
    p.add(fill(h, w, [bust]), surface(rng, h, w, textures))
    face = fill(h, w, [blob(rng, x, y + ry * 0.1, rx * 0.95, ry * 0.95, rough=0.02)])
    p.add(face, skin * (0.85 + 0.3 * noise(rng, h, w, 8))[..., None])
    for side in (-1, 1):
        eye = (x + side * rx * 0.4, y + ry * 0.05)
        p.add(fill(h, w, [blob(rng, *eye, rx * 0.16, rx * 0.09, rough=0)]), (0.95, 0.95, 0.93))
        p.add(fill(h, w, [blob(rng, *eye, rx * 0.08, rx * 0.08, rough=0)]), tone * 0.3)
        brow = capsule(eye - np.array((rx * 0.2, rx * 0.2)), eye + np.array((rx * 0.2, -rx * 0.22)),
                       rx * 0.04, rx * 0.03)  # fmt: skip
        p.add(fill(h, w, [brow]), tone * 0.6)
    nose = capsule((x, y + ry * 0.1), (x + rx * 0.06, y + ry * 0.36), rx * 0.03, rx * 0.09)
    p.add(fill(h, w, [nose]) * 0.5, skin * 0.7)
    mouth = blob(rng, x, y + ry * 0.62, rx * 0.28, rx * 0.08, rough=0.08)
    p.add(fill(h, w, [mouth]), skin * (0.85, 0.5, 0.5))
    n = 260
    theta = rng.uniform(-np.pi * 0.95, -np.pi * 0.05, n)
    roots = np.stack((x + rx * np.cos(theta), y + ry * np.sin(theta)), -1)
    roots += rng.normal(0, rx * 0.06, (n, 2)) + (0, ry * 0.1)
    angles = rng.normal(np.pi * 0.5, 0.5, n) + np.cos(theta) * -0.9
    lengths = rx * rng.uniform(0.4, 0.85) * rng.lognormal(0, 0.2, n)
    _add_strands(p, rng, strands(rng, roots, angles, lengths, width=width, **how), tone)
    p.relight(light(rng, p.alpha, 0.35))
    return p


def fur(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a furry animal, or a ball of fur."""
    p, s = Painting(h, w), min(h, w)
    x, y = w * rng.uniform(0.42, 0.58), h * rng.uniform(0.5, 0.6)
    bx, by = s * rng.uniform(0.2, 0.3), s * rng.uniform(0.17, 0.26)
    hx, hy, hr = x + bx * rng.uniform(0.4, 1), y - by * rng.uniform(0.5, 1), s * 0.14
    body, head = [blob(rng, x, y, bx, by, rough=0.06)], []
    animal = rng.random() < 0.75
    if animal:
        for leg in (-0.75, -0.35, 0.35, 0.75):
            foot = (x + leg * bx + rng.normal(0, s * 0.03), y + by + s * rng.uniform(0.05, 0.15))
            body.append(capsule((x + leg * bx, y + by * 0.4), foot, s * 0.06, s * 0.035))
        tail = (x - bx - s * rng.uniform(0.02, 0.12), y - s * rng.uniform(-0.1, 0.2))
        body.append(capsule((x - bx * 0.8, y), tail, s * 0.05, s * 0.03))
        for side in (-1, 1):
            ear = (hx + side * hr * 0.75, hy - hr * rng.uniform(0.9, 1.5))
            head.append(capsule((hx + side * hr * 0.4, hy - hr * 0.4), ear, hr * 0.4, hr * 0.15))
        head.append(blob(rng, hx, hy, hr, hr * rng.uniform(0.85, 1.1), rough=0.04))
    tone = hair_tone(rng)
    comb, length = rng.uniform(0, 6.3), s * rng.uniform(0.025, 0.1)
    width = s / 384 * rng.uniform(1.4, 2.8)
    how = {"curl": rng.uniform(0.2, 1.2), "gravity": rng.uniform(0, 0.5), "steps": 6}
    spots = np.clip(noise(rng, h, w, rng.uniform(2, 9), 3) * 5 - 2.2, 0, 1)[..., None]
    patches = tone + (hair_tone(rng) - tone) * spots * rng.uniform(0, 1)
    for outlines in filter(None, (body, head)):
        p.add(fill(h, w, outlines), patches * 0.8)
        quads = []
        for outline in outlines:
            center, n = outline.mean(0), int(250 + 3000 * np.ptp(outline, 0).prod() / s**2)
            roots = outline[rng.integers(len(outline), size=n)] + rng.normal(0, 1.5, (n, 2))
            depth = np.where(rng.random((n, 1)) < 0.5, rng.random((n, 1)) ** 0.5, 1)
            out = roots - center
            push = out / (np.linalg.norm(out, axis=1, keepdims=True) + 1e-6)
            push += 0.6 * np.array((np.cos(comb), np.sin(comb)))
            angles = np.arctan2(push[:, 1], push[:, 0]) + rng.normal(0, 0.3, n)
            lengths = length * rng.lognormal(0, 0.3, n)
            quads.append(strands(rng, center + out * depth, angles, lengths, width=width, **how))
        _add_strands(p, rng, rng.permutation(np.concatenate(quads)), patches)
    if animal:
        for side in (-0.45, 0.4):
            eye = (hx + side * hr, hy - hr * 0.1)
            p.add(fill(h, w, [blob(rng, *eye, hr * 0.16, hr * 0.17, rough=0)]), (0.05, 0.04, 0.04))
            p.add(fill(h, w, [blob(rng, eye[0] + 1, eye[1] - 2, 2, 2, rough=0)]), (1, 1, 1))
        nose = blob(rng, hx, hy + hr * 0.4, hr * 0.2, hr * 0.13, rough=0.05)
        p.add(fill(h, w, [nose]), (0.1, 0.07, 0.07))
        roots = np.array((hx, hy + hr * 0.45)) + rng.normal(0, 2, (14, 2))
        angles = np.where(np.arange(14) % 2, 0.1, np.pi - 0.1) + rng.normal(0, 0.3, 14)
        whiskers = strands(rng, roots, angles, hr * rng.uniform(1, 2, 14), width=1.4, curl=0.3)
        p.add(fill_quads(h, w, whiskers.reshape(-1, 4, 2)) * 0.85, np.clip(tone + 0.4, 0, 1))
    p.relight(light(rng, p.alpha, 0.5))
    return p


def feather(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a feather: barbs on both sides of a shaft, with gaps, downy at the base."""
    p, s = Painting(h, w), min(h, w)
    t = np.linspace(0, 1, 60)
    bend, turn = rng.normal(0, 0.5), rng.uniform(0, 6.3)
    angle = turn + bend * t
    shaft = np.cumsum(np.stack((np.cos(angle), np.sin(angle)), -1), 0) * s * 0.84 / 60
    shaft += np.array((w / 2, h / 2)) - shaft[30]
    tone, n = hsv(rng.random(), rng.beta(1, 2.5), rng.uniform(0.15, 1)), 900
    k = rng.integers(8, 59, n)
    side = np.where(rng.random(n) < 0.5, -1, 1)
    lengths = s * rng.uniform(0.16, 0.26) * np.sin(np.pi * (t[k] * 0.85 + 0.12)) ** 0.6
    gaps = noise(rng, 64, 64, 16, 2)[k, 32 + 8 * side] > rng.uniform(0.3, 0.4)
    down = k < 14
    angles = angle[k] + side * (rng.uniform(0.5, 0.8) + rng.normal(0, 0.08, n) + 0.7 * down)
    roots = shaft[k] + rng.normal(0, 1, (n, 2))
    keep = gaps | down
    roots, angles, lengths = roots[keep], angles[keep], (lengths * rng.uniform(0.85, 1.05, n))[keep]
    width = s / 384 * rng.uniform(2.5, 4)
    quads = strands(rng, roots, angles, lengths, width=width, curl=0.15)
    bands = np.sin(t[k[keep]] * rng.uniform(10, 30)) > 0.2
    _add_strands(p, rng, quads[~bands], tone)
    _add_strands(p, rng, quads[bands], tone * rng.uniform(0.4, 1.6))
    p.add(fill_quads(h, w, ribbons(shaft[None], s * 0.012 * (1.1 - t)[None])), tone * 0.5 + 0.4)
    return p


def tree(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a tree with bare twigs or small leaves."""
    p, s = Painting(h, w), min(h, w)
    twigs, ends = [], []
    stack = [(np.array((w / 2, h * 0.97)), -np.pi / 2 + rng.normal(0, 0.1), s * 0.2, s * 0.045)]
    while stack:
        start, angle, length, width = stack.pop()
        end = start + length * np.array((np.cos(angle), np.sin(angle)))
        twigs.append(ribbons(np.stack((start, end))[None], np.array([[width, width * 0.75]])))
        if width < s * 0.004:
            ends.append(end)
            continue
        for side in (-1, 1) if rng.random() < 0.75 else (-1, 0, 1):
            turn = side * rng.uniform(0.2, 0.6) + rng.normal(0, 0.12)
            sizes = length * rng.uniform(0.72, 0.88), width * rng.uniform(0.58, 0.72)
            stack.append((end, angle + turn, *sizes))
    bark = surface(rng, h, w, base=hsv(0.08, rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.6)))
    p.add(fill_quads(h, w, np.concatenate(twigs)), bark)
    if rng.random() < 0.6:
        hue, size = rng.choice([0.28, 0.1, 0.03, 0.95]), s * rng.uniform(0.012, 0.028)
        for _ in range(4):
            tone = hsv(hue + rng.normal(0, 0.03), rng.uniform(0.4, 0.9), rng.uniform(0.25, 0.9))
            spots = [e + rng.normal(0, size, 2) for e in ends]
            p.add(fill(h, w, [leaf(e, rng.uniform(0, 6.3), size, 0.3)[0] for e in spots]), tone)
    return p
