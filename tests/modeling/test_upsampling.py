"""Upsampling and convolving at once."""

import pytest
import torch
from diffusers.models.upsampling import Upsample2D

from SDMatte.modeling.upsampling import UpsampleConv


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 5), (32, 16)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_computes_what_diffusers_does_and_its_gradient(size, layout):
    torch.manual_seed(0)
    plain = Upsample2D(6, use_conv=True, out_channels=4)
    ours = UpsampleConv(plain.conv)
    grads = []
    outputs = []
    for module in (plain, ours):
        given = torch.linspace(-1, 1, 2 * 6 * size[0] * size[1]).reshape(2, 6, *size)
        given = given.to(memory_format=layout).requires_grad_()
        outputs.append(module(given))
        grads.append(torch.autograd.grad(outputs[-1].square().sum(), given)[0])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)


def test_in_bfloat16_it_is_as_close_to_float32_as_diffusers():
    torch.manual_seed(0)
    plain = Upsample2D(64, use_conv=True)
    given = torch.randn(1, 64, 16, 16)
    exact = plain(given)
    plain, given = plain.bfloat16(), given.bfloat16()
    errors = [(m(given).float() - exact).abs().mean() for m in (plain, UpsampleConv(plain.conv))]
    assert errors[1] < 1.5 * errors[0]


def test_names_of_weights_stay():
    plain = Upsample2D(4, use_conv=True)
    assert list(UpsampleConv(plain.conv).state_dict()) == list(plain.state_dict())
