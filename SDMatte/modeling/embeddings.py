"""Sinusoidal embeddings of prompt coordinates (paper, Sec. 3.3)."""

import torch
from diffusers.models.embeddings import get_timestep_embedding

from SDMatte.errors import PromptError


def embed_box_coords(
    coords: torch.Tensor, channels: int, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> torch.Tensor:
    """Embed normalized box corners as one sinusoidal vector.

    Args:
        coords: `[B, 4]`, x0, y0, x1, y1 as fractions of width and height, in [0, 1].
        channels: Channels per coordinate (320 in the published models).
        flip_sin_to_cos: As in the U-Net's time embedding.
        freq_shift: As in the U-Net's time embedding.

    Returns:
        `[B, 4 * channels]` float32.

    Raises:
        PromptError: `coords` has a different shape.
    """
    if coords.ndim != 2 or coords.shape[1] != 4:
        raise PromptError(f"Box coordinates must be [B, 4]; got {list(coords.shape)}.")
    return _embed(coords, channels, flip_sin_to_cos, freq_shift)


def embed_point_coords(coords: torch.Tensor, width: int) -> torch.Tensor:
    """Embed normalized point coordinates as one sinusoidal vector of fixed width.

    Coordinates are padded with zeros to the smallest count that divides `width`. The layout of the
    embedding depends on that count, so pass as many coordinates as in training (20).

    Args:
        coords: `[B, N]`, x and y of the points as fractions of width and height, in [0, 1].
        width: Width of the embedding (1680 in the published models).

    Returns:
        `[B, width]` float32.

    Raises:
        PromptError: `coords` is empty, or has too many coordinates for `width`.
    """
    if coords.ndim != 2 or coords.shape[1] == 0:
        raise PromptError(f"Point coordinates must be [B, N]; got {list(coords.shape)}.")
    given = coords.shape[1]
    count = next((n for n in range(given, width) if width % n == 0), None)
    if count is None:
        raise PromptError(f"An embedding of width {width} cannot hold {given} point coordinates.")
    coords = torch.nn.functional.pad(coords, (0, count - given))
    return _embed(coords, width // count, flip_sin_to_cos=True, freq_shift=0)


def _embed(coords: torch.Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float):
    flat = get_timestep_embedding(
        coords.flatten(),
        channels,
        flip_sin_to_cos=flip_sin_to_cos,
        downscale_freq_shift=freq_shift,
    )
    return flat.reshape(coords.shape[0], -1)  # len() would become a constant in exports
