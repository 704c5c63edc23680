"""Coordinate embeddings equal their definition."""

import math

import pytest
import torch

from SDMatte.errors import PromptError
from SDMatte.modeling.embeddings import embed_box_coords, embed_point_coords

pytestmark = pytest.mark.numerics


def sinusoid(value: float, channels: int) -> torch.Tensor:
    """cos then sin, as with flip_sin_to_cos, frequencies 1 down to (nearly) 1/10000."""
    half = channels // 2
    angles = value * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()])


def test_box_coordinates():
    coords = torch.tensor([[0.1, 0.2, 0.7, 1.0]])
    expected = torch.cat([sinusoid(v, 320) for v in coords[0].tolist()])
    torch.testing.assert_close(embed_box_coords(coords, 320)[0], expected)


@pytest.mark.parametrize(
    ("given", "count"), [(20, 20), (1, 1), (2, 2), (9, 10), (11, 12), (22, 24), (700, 840)]
)
def test_points_are_padded_to_a_count_that_divides_the_width(given, count):
    coords = torch.rand(2, given)
    embedded = embed_point_coords(coords, 1680)
    assert embedded.shape == (2, 1680)
    padded = torch.cat([coords[1], torch.zeros(count - given)])
    expected = torch.cat([sinusoid(v, 1680 // count) for v in padded.tolist()])
    torch.testing.assert_close(embedded[1], expected)


def test_wrong_numbers_of_coordinates_are_refused():
    with pytest.raises(PromptError, match=r"must be \[B, 4\]; got \[2, 5\]"):
        embed_box_coords(torch.zeros(2, 5), 320)
    with pytest.raises(PromptError, match="1680 cannot hold 841 point coordinates"):
        embed_point_coords(torch.zeros(1, 841), 1680)
