"""The object kinds of the sample set, their frequencies, and their split."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from SDMatte.samples import hair, opaque, transparent
from SDMatte.samples.drawing import Painting, Rng, Textures


@dataclass(frozen=True)
class ObjectKind:
    """One kind of object and how it is drawn."""

    # Draws an object on a canvas of height h and width w: (rng, h, w, textures) -> Painting.
    draw: Callable[[Rng, int, int, Textures], Painting]
    weight: int  # relative frequency
    held_out: bool = False  # only in the test part, never in training
    transparent: bool = False  # partly transparent throughout, like glass


OBJECT_KINDS: dict[str, ObjectKind] = {
    "hair": ObjectKind(hair.hair, 7),
    "fur": ObjectKind(hair.fur, 7),
    "solid": ObjectKind(opaque.solid, 5),
    "figure": ObjectKind(opaque.figure, 5),
    "leaves": ObjectKind(opaque.leaves, 5),
    "defocus": ObjectKind(opaque.defocus, 4),
    "net": ObjectKind(opaque.net, 4),
    "rings": ObjectKind(opaque.rings, 4),
    "text": ObjectKind(opaque.text, 3),
    "glass": ObjectKind(transparent.glass, 5, transparent=True),
    "smoke": ObjectKind(transparent.smoke, 4, transparent=True),
    "veil": ObjectKind(transparent.veil, 3, transparent=True),
    "feather": ObjectKind(hair.feather, 1, held_out=True),
    "tree": ObjectKind(hair.tree, 1, held_out=True),
    "wheel": ObjectKind(opaque.wheel, 1, held_out=True),
    "fish": ObjectKind(opaque.fish, 2, held_out=True),
    "bubbles": ObjectKind(transparent.bubbles, 1, held_out=True, transparent=True),
}


def foreground(
    rng: Rng, kind: str, h: int, w: int, textures: Textures = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one object of a kind of `OBJECT_KINDS`.

    Returns:
        Straight colors, `[h, w, 3]` float32 in [0, 1], also defined where alpha is zero; and alpha,
        `[h, w]` float32 in [0, 1].
    """
    for _ in range(8):
        painting = OBJECT_KINDS[kind].draw(rng, h, w, textures)
        if 0.05 < painting.alpha.mean() < 0.75:
            break
    color, alpha = painting.color(), painting.alpha
    grain = rng.standard_normal((h, w, 1), np.float32)  # like the noise of a camera sensor
    color = color + grain * np.float32(rng.uniform(0, 0.03))
    if kind != "text" and rng.random() < 0.5:
        color, alpha = color[:, ::-1], alpha[:, ::-1]
    return np.clip(color, 0, 1).astype(np.float32), np.clip(alpha, 0, 1)
