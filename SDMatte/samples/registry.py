"""The kinds of foreground, how often each is drawn, and for which part."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from SDMatte.samples import clear, hairy, opaque
from SDMatte.samples.drawing import Painting, Rng, Textures


@dataclass(frozen=True)
class Kind:
    """How one kind of foreground is drawn.

    Attributes:
        draw: the function.
        weight: how often it is taken, relative to the others.
        held_out: only in the test part, never in training.
        transparent: partly transparent all over, as glass is.
    """

    draw: Callable[[Rng, int, int, Textures], Painting]
    weight: int
    held_out: bool = False
    transparent: bool = False


kinds: dict[str, Kind] = {
    "hair": Kind(hairy.hair, 7),
    "fur": Kind(hairy.fur, 7),
    "solid": Kind(opaque.solid, 5),
    "figure": Kind(opaque.figure, 5),
    "leaves": Kind(opaque.leaves, 5),
    "defocus": Kind(opaque.defocus, 4),
    "net": Kind(opaque.net, 4),
    "rings": Kind(opaque.rings, 4),
    "text": Kind(opaque.text, 3),
    "glass": Kind(clear.glass, 5, transparent=True),
    "smoke": Kind(clear.smoke, 4, transparent=True),
    "veil": Kind(clear.veil, 3, transparent=True),
    "feather": Kind(hairy.feather, 1, held_out=True),
    "tree": Kind(hairy.tree, 1, held_out=True),
    "wheel": Kind(opaque.wheel, 1, held_out=True),
    "fish": Kind(opaque.fish, 2, held_out=True),
    "bubbles": Kind(clear.bubbles, 1, held_out=True, transparent=True),
}


def foreground(
    rng: Rng, name: str, h: int, w: int, textures: Textures = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one foreground of a kind.

    Returns:
        Its colours, [h, w, 3] float32 in [0, 1], defined everywhere and not premultiplied, and its
        alpha, [h, w] float32 in [0, 1].
    """
    for _ in range(8):
        painting = kinds[name].draw(rng, h, w, textures)
        if 0.05 < painting.alpha.mean() < 0.75:
            break
    colour, alpha = painting.colour(), painting.alpha
    grain = rng.standard_normal((h, w, 1), np.float32)  # as in photographs
    colour = colour + grain * np.float32(rng.uniform(0, 0.03))
    if name != "text" and rng.random() < 0.5:
        colour, alpha = colour[:, ::-1], alpha[:, ::-1]
    return np.clip(colour, 0, 1).astype(np.float32), np.clip(alpha, 0, 1)
