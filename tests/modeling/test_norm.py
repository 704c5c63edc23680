"""Group norm of one large image on a GPU."""

import pytest
import torch
from models import tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from SDMatte.modeling.norm import PARALLEL_FROM, ParallelGroupNorm

LAYOUTS = (torch.contiguous_format, torch.channels_last)


class Recorded(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("spread", [1.0, 1e-2], ids=["noise", "almost constant"])
@torch.no_grad()
def test_parallel_norms_equal_group_norms(layout, dtype, tolerance, spread):
    torch.manual_seed(0)
    norm = ParallelGroupNorm(4, 16, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    map_ = (torch.randn(1, 16, 40, 24) * spread + 3).to(dtype).to(memory_format=layout)
    exact = nn.functional.group_norm(
        map_.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps
    )
    found = norm.to(dtype).normalize_in_parallel(map_)
    assert found.dtype == dtype and found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found.double(), exact, atol=tolerance, rtol=tolerance)


def used_operations(size: tuple[int, ...]) -> set[str]:
    with FakeTensorMode(allow_non_fake_inputs=True), Recorded() as recorded:
        norm = ParallelGroupNorm(32, size[1], device="cuda")
        norm(torch.empty(size, device="cuda"))
    return recorded.names


def test_only_large_maps_of_one_image_are_normalized_in_parallel():
    channels, side = 512, 128
    assert channels * side**2 == PARALLEL_FROM
    with torch.no_grad():
        assert "aten::native_group_norm" not in used_operations((1, channels, side, side))
        assert "aten::native_group_norm" in used_operations((1, channels, side, side - 1))
        assert "aten::native_group_norm" in used_operations((2, channels, side, side))
    assert "aten::native_group_norm" in used_operations((1, channels, side, side))  # gradients


def test_all_group_norms_of_models_can_be_parallel():
    norms = [m for m in tiny_model().modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(isinstance(m, ParallelGroupNorm) for m in norms)
