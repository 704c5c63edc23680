"""Training pictures made of a foreground and a background: step 2 of data/README.md."""

import cv2
import numpy as np

from SDMatte.data.settings import DataSettings
from SDMatte.data.transforms import BilinearGrid


def composite(
    fg: np.ndarray,
    alpha: np.ndarray,
    background: np.ndarray,
    size: int,
    rng: np.random.Generator,
    settings: DataSettings,
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Puts an object on a background, twice side by side, and keeps one of the two as target.

    Two equal objects stand in the picture and only the prompted one is the target: this is what
    makes the prompt matter. The result is that of compositing at full size and resizing, but
    only the pixels that the resize reads are computed. The background is resized, and blurred,
    as the 8-bit picture that it is.

    Random draws, in this order, all of them always: whether to duplicate, whether to blur, the
    blur's size, which copy stays (0 the left one).

    Args:
        fg: uint8 ``[H, W, 3]``, the foreground's colours.
        alpha: float32 ``[H, W]`` in [0, 1].
        background: uint8 ``[h, w, 3]`` of any size.
        size: Side of the result.
        rng: Source of the choices.
        settings: The knobs.

    Returns:
        The picture, float32 ``[size, size, 3]`` in [0, 1]; the target's alpha, float32
        ``[size, size]`` in [0, 1]; height and width of the composite before resizing.
    """
    duplicate = rng.random() < settings.duplicate_prob
    blur = rng.random() < settings.blur_prob
    blur_size = int(rng.choice(settings.blur_sizes))
    kept = int(rng.integers(2)) if duplicate else 0

    height, width = alpha.shape
    total = 2 * width if duplicate else width
    background = cv2.resize(background, (total, height), interpolation=cv2.INTER_LINEAR)
    if blur:
        background = cv2.blur(background, (blur_size, blur_size))

    grid = BilinearGrid(height, total, size)
    part = grid.gather(alpha)
    weight = part[..., None]
    image = grid.gather(background)
    image += (grid.gather(fg) - image) * weight  # fg·α + bg·(1 - α)
    target = part * (grid.columns // width == kept)
    small = grid.combine(image) / np.float32(255)  # [0, 255] -> [0, 1]
    return small, grid.combine(target), (height, total)
