"""Composites of a foreground and a background (data/README.md, step 2)."""

import cv2
import numpy as np

from SDMatte.data.settings import DataSettings
from SDMatte.data.transforms import crop_window
from SDMatte.errors import DataError
from SDMatte.images.decode import max_pixels
from SDMatte.images.resize import BilinearGrid, Window, pick, unit
from SDMatte.prompts.maps import extent


def composite(
    fg: np.ndarray,
    alpha: np.ndarray,
    background: np.ndarray,
    size: int,
    rng: np.random.Generator,
    settings: DataSettings,
    *,
    hw: tuple[int, int] | None = None,
    crop: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Composite an object onto a background twice, side by side; one copy is the target.

    Since the copies are equal, only the prompt tells the model which one is the target. The result
    equals compositing at full size and resizing, but only the pixels that the resize reads are
    computed. The background is resized and blurred in 8 bits.

    With ``keep_aspect``, the canvas becomes a square that contains both copies, and ``crop`` draws
    a part of it.

    Args:
        fg: Colors of the foreground, uint8 ``[H, W, 3]``.
        alpha: ``[H, W]``, uint8, or float32 in [0, 1].
        background: uint8 ``[h, w, 3]`` of any size.
        size: Side of the result in pixels.
        rng: Draws all choices but the crop.
        settings: The settings.
        hw: Height and width of the foreground's file. If it was read at a reduced size, it is
            composited at the size of the result, and the blur is scaled accordingly.
        crop: Draws the crop window; None: no crop.

    Returns:
        The image, float32 ``[size, size, 3]`` in [0, 1]; the alpha of the target, float32
        ``[size, size]`` in [0, 1]; height and width before resizing, in pixels of the files.

    Raises:
        DataError: With ``keep_aspect``, the square around a long foreground is too large.
    """
    copies = 2 if rng.random() < settings.duplicate_prob else 1
    blurred = rng.random() < settings.blur_prob
    blur_size = int(rng.choice(settings.blur_sizes))  # in pixels of the files
    kept = int(rng.integers(2)) if copies == 2 else 0  # 0: left, 1: right
    hw = hw or alpha.shape
    if hw != alpha.shape and not settings.keep_aspect:
        each = (-(-size // copies), size)  # width and height of a copy
        fg, alpha = (cv2.resize(a, each, interpolation=cv2.INTER_LINEAR) for a in (fg, alpha))
    height, width = alpha.shape
    total = copies * width
    canvas = (height, total)
    if settings.keep_aspect:
        canvas = (max(canvas), max(canvas))
        limit = 4 * max_pixels()  # two copies of the largest square image, with margins
        if canvas[0] * canvas[1] > limit:
            raise DataError(
                f"A foreground of {width}x{height} pixels is too long for keep_aspect: it needs a "
                f"background of {canvas[1]}x{canvas[0]}, and the limit is {limit / 1e6:.0f} "
                f"megapixels."
            )
        side = min(background.shape[:2])
        y, x = ((length - side) // 2 for length in background.shape[:2])
        background = Window(y, x, side, side).cut(background)
    top, left = (canvas[0] - height) // 2, (canvas[1] - total) // 2
    background = cv2.resize(background, canvas[::-1], interpolation=cv2.INTER_LINEAR)
    if blurred:
        box_h, box_w = (
            max(1, round(blur_size * part / whole))
            for part, whole in zip(alpha.shape, hw, strict=True)
        )
        background = cv2.blur(background, (box_w, box_h))

    window = Window.whole(canvas)
    if crop is not None:
        box = extent(alpha > 0)
        x, y = left + kept * width, top
        box = box and (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
        window = crop_window(box, canvas, crop)
    grid = BilinearGrid(window, size)
    rows, columns = grid.rows - top, grid.columns - left  # in the foreground and its copy
    fg_rows, fg_columns = np.clip(rows, 0, height - 1), columns % width
    part = unit(pick(alpha, fg_rows, fg_columns))
    if canvas != (height, total):  # only background around the objects
        part[fg_rows != rows] = 0
        part[:, (columns < 0) | (columns >= total)] = 0
    image = pick(background, grid.rows, grid.columns).astype(np.float32)
    image += (pick(fg, fg_rows, fg_columns) - image) * part[..., None]  # fg·α + bg·(1 - α)
    target = part * (columns // width == kept)
    small = grid.combine(image) / np.float32(255)  # [0, 255] -> [0, 1]
    shown = window.scaled((height, width), hw)
    return small, grid.combine(target), (shown.height, shown.width)
