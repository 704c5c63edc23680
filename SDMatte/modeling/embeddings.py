"""Sinusoidal embeddings of prompt coordinates (paper section 3.3)."""

import torch
from diffusers.models.embeddings import get_timestep_embedding

from SDMatte.errors import PromptError


def embed_box_coords(
    coords: torch.Tensor, channels: int, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> torch.Tensor:
    """Embeds boxes: each coordinate on its own, side by side.

    Args:
        coords: ``[B, 4]``, x0, y0, x1, y1 as fractions of width and height, in [0, 1].
        channels: Channels of one coordinate's embedding (320 in the published models).
        flip_sin_to_cos: As in the U-Net's own time embedding.
        freq_shift: As in the U-Net's own time embedding.

    Returns:
        ``[B, 4 * channels]`` float32.

    Raises:
        PromptError: The coordinates are not four numbers a picture.
    """
    if coords.ndim != 2 or coords.shape[1] != 4:
        raise PromptError(f"A box is 4 numbers a picture, [B, 4]; got {list(coords.shape)}.")
    flat = get_timestep_embedding(
        coords.flatten(),
        channels,
        flip_sin_to_cos=flip_sin_to_cos,
        downscale_freq_shift=freq_shift,
    )
    return flat.reshape(len(coords), 4 * channels)


def embed_point_coords(coords: torch.Tensor, width: int) -> torch.Tensor:
    """Embeds points so that the concatenation always has the same width.

    The vector is padded with zeros to the smallest length that divides ``width``; the layout of
    the embedding depends on that length, so points must come in the length that the model was
    trained with (20 numbers).

    Args:
        coords: ``[B, N]``, x and y of the points as fractions of width and height, in [0, 1].
        width: Width of the embedding (1680 in the published models).

    Returns:
        ``[B, width]`` float32.

    Raises:
        PromptError: There are too many points to divide ``width`` among them.
    """
    if coords.ndim != 2 or coords.shape[1] == 0:
        raise PromptError(f"Points are x, y, x, y, ..., [B, N]; got {list(coords.shape)}.")
    given = coords.shape[1]
    length = next((n for n in range(given, width) if width % n == 0), None)
    if length is None:
        raise PromptError(f"{given} point coordinates do not fit an embedding of {width} numbers.")
    coords = torch.nn.functional.pad(coords, (0, length - given))
    flat = get_timestep_embedding(
        coords.flatten(), width // length, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    return flat.reshape(len(coords), width)
