"""Transparent objects: smoke, glass, veils, soap bubbles."""

import cv2
import numpy as np

from SDMatte.samples.drawing import (
    Painting,
    Rng,
    Textures,
    blob,
    fill,
    fill_quads,
    hsv,
    noise,
    ribbons,
    rotate,
    soften,
    surface,
)


def smoke(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw smoke or fire that rises and spreads."""
    p = Painting(h, w)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    rise = 1 - y / h  # 0 at the foot
    center = w * (rng.uniform(0.35, 0.65) + rng.normal(0, 0.12) * np.sin(rise * rng.uniform(2, 6)))
    spread = w * (rng.uniform(0.06, 0.16) + rng.uniform(0.06, 0.24) * rise)
    envelope = np.exp(-(((x - center) / spread) ** 2)) * np.clip(rise * 9 - 0.3, 0, 1)
    envelope *= np.clip((rng.uniform(0.8, 0.97) - rise) * 5, 0, 1)
    reach = min(h, w) * rng.uniform(0.1, 0.22)
    wx, wy = (noise(rng, h, w, 4, 3) - 0.5) * reach, (noise(rng, h, w, 4, 3) - 0.5) * reach
    swirl = cv2.remap(noise(rng, h, w, 6, 5), x + wy, y + wx, cv2.INTER_LINEAR,
                      borderMode=cv2.BORDER_REFLECT)  # fmt: skip
    envelope = cv2.remap(envelope.astype(np.float32), x + wx, y + wy, cv2.INTER_LINEAR)
    density = np.clip(envelope * (2.4 * swirl - 0.3) - 0.03, 0, None) * rng.uniform(1.2, 4)
    alpha = (1 - np.exp(-density)) * rng.uniform(0.7, 1)
    base = hsv(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.1, 1))
    color = np.clip(base * (0.6 + 0.8 * swirl)[..., None], 0, 1)
    if rng.random() < 0.3:
        heat = np.clip(alpha * 1.3, 0, 1)[..., None]
        color = np.concatenate((0.9 + 0 * heat, 0.25 + 0.65 * heat, 0.9 * heat**3), -1)
    p.add(alpha, color)
    return p


def glass(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw a glass bottle, goblet, vase or tumbler, empty or partly filled."""
    p = Painting(h, w)
    top, foot = h * rng.uniform(0.06, 0.16), h * rng.uniform(0.86, 0.95)
    y, x = np.mgrid[:h, :w].astype(np.float32) + 0.5
    t = np.clip((y[:, 0] - top) / (foot - top), 0, 1)  # [h], 0 at the rim
    r = min(w * rng.uniform(0.2, 0.36), h * 0.36)
    bowl, flare = np.sqrt(np.clip(1 - (t / 0.56) ** 4, 0.006, 1)), np.clip((t - 0.86) * 10, 0, 1)
    profile = {
        "tumbler": lambda: r * (1 - rng.uniform(0, 0.3) * t),
        "bottle": lambda: r * (0.35 + 0.65 / (1 + np.exp(-(t - rng.uniform(0.25, 0.45)) * 30))),
        "vase": lambda: r * (0.7 + 0.3 * np.sin(t * rng.uniform(4, 7) + rng.uniform(0, 6))),
        "goblet": lambda: r * np.where(t < 0.55, bowl, 0.08 + 0.75 * flare**2),
    }[rng.choice(["tumbler", "bottle", "vase", "goblet"])]()
    middle = w * rng.uniform(0.46, 0.54)
    rows = np.arange(h) + 0.5
    inside = (rows >= top) & (rows <= foot)
    left = np.stack((middle - profile, rows), -1)[inside]
    right = np.stack((middle + profile, rows), -1)[inside][::-1]
    rim = blob(rng, middle, top, profile[inside][0], profile[inside][0] * 0.18, rough=0)
    base = blob(rng, middle, foot, profile[inside][-1], profile[inside][-1] * 0.16, rough=0)
    shape = fill(h, w, [np.concatenate((left, right)), rim, base])
    across = np.clip(np.abs(x - middle) / np.maximum(profile, 2)[:, None], 0, 1)
    tint = hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.5, 1))
    thin = rng.uniform(0.08, 0.35)
    wall = thin + (rng.uniform(0.55, 0.9) - thin) * across ** rng.uniform(4, 9)
    wall = wall + 0.4 * np.clip(t - 0.93, 0, 1)[:, None] * 10 * thin
    p.add(shape * np.clip(wall, 0, 0.95), tint * (0.55 + 0.5 * noise(rng, h, w, 5, 3))[..., None])
    if rng.random() < 0.5:
        level = rng.uniform(0.3, 0.7)
        drink = np.clip((t - level) * h / 4, 0, 1)[:, None] * np.clip((1 - across) * 9, 0, 1)
        color = hsv(rng.random(), 0.8, rng.uniform(0.3, 0.9))
        p.add(shape * drink * rng.uniform(0.35, 0.75), color)
    for _ in range(int(rng.integers(1, 4))):
        at, wide = rng.uniform(-0.8, 0.8), rng.uniform(0.02, 0.09)
        streak = np.exp(-((((x - middle) / np.maximum(profile, 2)[:, None] - at) / wide) ** 2))
        ends = np.clip((t - rng.uniform(0.05, 0.3)) * 12, 0, 1) * np.clip((0.9 - t) * 9, 0, 1)
        p.add(shape * streak * ends[:, None] * rng.uniform(0.5, 0.95), (1, 1, 1))
    edge = np.concatenate((rim, rim[:1]))[None]
    p.add(fill_quads(h, w, ribbons(edge, np.array(2.0))) * 0.7, np.clip(tint * 1.3, 0, 1))
    return p


def veil(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw hanging gauze, denser in its folds."""
    p, s = Painting(h, w), min(h, w)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    sway = s * 0.25 * (noise(rng, h, w, 2, 2) - 0.5)
    folds = np.sin((x + sway * (0.5 + y / h)) / s * rng.uniform(18, 45)) * 0.5 + 0.5
    weave = 1 + 0.15 * np.sin(x * 2.1) * np.sin(y * 2.1)
    low, high = rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.95)
    alpha = np.clip((low + (high - low) * folds**2) * weave, 0, 1)
    edge = np.linspace(0, 1, 60)
    wide = s * rng.uniform(0.22, 0.38)
    hem = h * 0.86 + s * 0.04 * np.sin(edge * rng.uniform(8, 25))
    right = w / 2 + wide * (2 * edge - 1) * rng.uniform(1, 1.25)
    rail = [(w / 2 + wide * 0.8, h * 0.1), (w / 2 - wide * 0.8, h * 0.12)]
    outline = np.concatenate((np.stack((right, hem), -1), rail))
    tone = hsv(rng.random(), rng.beta(1, 3), rng.uniform(0.5, 1))
    color = surface(rng, h, w, base=tone) * (0.65 + 0.5 * folds)[..., None]
    p.add(fill(h, w, [outline]) * alpha, np.clip(color, 0, 1))
    return p


def bubbles(rng: Rng, h: int, w: int, textures: Textures) -> Painting:
    """Draw soap bubbles: clear inside, iridescent and denser at the rim, with highlights."""
    p, s = Painting(h, w), min(h, w)
    y, x = np.mgrid[:h, :w].astype(np.float32) + 0.5
    for k in range(int(rng.integers(1, 6))):
        r = s * (rng.uniform(0.22, 0.34) if k == 0 else rng.uniform(0.06, 0.18))
        cx, cy = np.array((w / 2, h / 2)) + rng.normal(0, s * 0.16, 2) * (k > 0)
        d = np.hypot(x - cx, y - cy) / r
        ball = fill(h, w, [blob(rng, cx, cy, r, r, rough=0.01)])
        alpha = ball * np.clip(rng.uniform(0.08, 0.25) + 0.7 * np.clip(d, 0, 1) ** 6, 0, 0.95)
        film = 6 * d + 5 * noise(rng, h, w, 3, 2)
        phase = np.cos(film[..., None] + (0, 2.1, 4.2))
        p.add(alpha, 0.65 + 0.3 * phase)
        for q in (-1, 1):
            spot = blob(rng, cx + q * r * 0.45, cy + q * r * 0.5, r * 0.16, r * 0.09, rough=0.1)
            p.add(soften(fill(h, w, [rotate(spot, -0.7, spot.mean(0))]), 1.5) * 0.85, (1, 1, 1))
    return p
