"""The optimized autoencoder computes the same values as diffusers'."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.upsampling import Upsample2D

from SDMatte.modeling.cpu import autoencoder, optimize_for_cpu
from SDMatte.modeling.cpu.autoencoder import ExactGroupNorm, FoldedUpsample

pytestmark = pytest.mark.numerics


def folded(plain: Upsample2D) -> FoldedUpsample:
    ours = copy.deepcopy(plain)
    ours.__class__ = FoldedUpsample
    return ours


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 5), (32, 16)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_folded_upsampling_and_its_gradient_equal_diffusers(size, layout):
    torch.manual_seed(0)
    plain = Upsample2D(6, use_conv=True, out_channels=4)
    grads = []
    outputs = []
    for module in (plain, folded(plain)):
        given = torch.linspace(-1, 1, 2 * 6 * size[0] * size[1]).reshape(2, 6, *size)
        given = given.to(memory_format=layout).requires_grad_()
        outputs.append(module(given))
        grads.append(torch.autograd.grad(outputs[-1].square().sum(), given)[0])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)


def test_folded_upsampling_in_bfloat16_is_as_precise_as_diffusers():
    torch.manual_seed(0)
    plain = Upsample2D(64, use_conv=True)
    given = torch.randn(1, 64, 16, 16)
    exact = plain(given)
    plain, given = plain.bfloat16(), given.bfloat16()
    errors = [(m(given).float() - exact).abs().mean() for m in (plain, folded(plain))]
    assert errors[1] < 1.5 * errors[0]


def small_autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    return vae.requires_grad_(False)


def tiny_autoencoder() -> AutoencoderTiny:
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 2, 1),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=4,
    )
    return vae.requires_grad_(False)


def chunk_all_maps(monkeypatch) -> None:
    """Chunk maps of any size, at most five rows at a time."""
    monkeypatch.setattr(autoencoder, "LARGE_MAP", 1)
    monkeypatch.setattr(autoencoder, "CONV_CHUNK", 5 * 48 * 8)
    monkeypatch.setattr(autoencoder, "SUM_CHUNK", 5 * 48 * 8)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_whole_autoencoder_equals_diffusers(with_gradient, chunked, layout, monkeypatch):
    if chunked:
        chunk_all_maps(monkeypatch)
    plain = small_autoencoder()
    ours = copy.deepcopy(plain)
    optimize_for_cpu(ours)
    replaced = {type(module) for module in ours.modules()}
    assert replaced >= set(autoencoder.OPTIMIZED.values()) - {autoencoder.InplaceTinyBlock}
    assert not replaced & set(autoencoder.OPTIMIZED)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    image, found = torch.rand(2, 3, 32, 48), []
    for vae, given in ((plain, image), (ours, image.to(memory_format=layout))):
        with torch.no_grad():
            latent = vae.encode(given).latent_dist.mean
        latent = latent.requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            alpha = vae.decode(latent).sample
        found.append((latent, alpha))
        if with_gradient:
            found[-1] += torch.autograd.grad(alpha.square().sum(), latent)
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-5 * one.abs().max()


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_whole_tiny_autoencoder_equals_diffusers(with_gradient, layout):
    plain = tiny_autoencoder()
    ours = copy.deepcopy(plain)
    optimize_for_cpu(ours)
    assert {autoencoder.InplaceTinyBlock, autoencoder.UpsamplingConv} <= set(
        map(type, ours.modules())
    )
    assert ours.state_dict().keys() == plain.state_dict().keys()
    image, found = torch.rand(2, 3, 32, 48), []
    for vae, given in ((plain, image), (ours, image.to(memory_format=layout))):
        before = given.clone()
        with torch.no_grad():
            latent = vae.encode(given).latents
        assert torch.equal(given, before)  # inputs are not overwritten
        latent = latent.requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            alpha = vae.decode(latent).sample
        found.append((latent, alpha))
        if with_gradient:
            found[-1] += torch.autograd.grad(alpha.square().sum(), latent)
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-5 * one.abs().max()


@torch.no_grad()
def test_chunks_in_bfloat16_are_as_precise_as_whole_maps(monkeypatch):
    vae = small_autoencoder()
    optimize_for_cpu(vae)
    image = torch.rand(1, 3, 32, 48).to(memory_format=torch.channels_last)
    exact = vae.encode(image).latent_dist.mean
    vae, image, errors = vae.bfloat16(), image.bfloat16(), []
    for chunked in (False, True):
        if chunked:
            chunk_all_maps(monkeypatch)
        errors.append((vae.encode(image).latent_dist.mean.float() - exact).abs().mean())
    assert 0 < errors[1] < 1.5 * errors[0]


@torch.no_grad()
@pytest.mark.parametrize("mean", [0, 3])
def test_group_norm_is_precise_in_channels_last(mean):
    torch.manual_seed(0)
    norm = ExactGroupNorm(4, 16)
    norm.weight.normal_()
    norm.bias.normal_()
    given = (torch.randn(2, 16, 384, 256) + mean).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(norm).double()(given.double().contiguous())
    found = norm(given)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).abs().max() < 2e-5  # torch's own error is 7e-5 or more
    torch.testing.assert_close(norm(given.contiguous()).double(), exact, atol=2e-5, rtol=0)


@torch.no_grad()
def test_group_norm_is_precise_on_nearly_constant_maps():
    norm = ExactGroupNorm(1, 4)
    given = torch.full((1, 4, 256, 256), 30.0)
    given[..., 100, 100:103] += 1  # a variance of 5e-5
    exact = copy.deepcopy(norm).double()(given.double())
    found = norm(given.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=1e-5)
