"""Encoding images of constant bands gives the latents of the whole image."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from models import make_batch, tiny_model

from SDMatte.modeling.cpu import autoencoder, encode_bands, optimize_for_cpu
from SDMatte.modeling.cpu.bands import find_edges, plan_axis
from SDMatte.prompts.types import PROMPT_TYPES

DEPTHS = [5, 4, 4, 9]  # of Stable Diffusion's encoder: conv_in, two blocks per level, the middle


def plain_autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()
    with torch.no_grad():
        for parameter in vae.parameters():  # make biases and norms matter
            parameter += 0.1 * torch.randn_like(parameter)
    return vae


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    vae = plain_autoencoder()
    optimize_for_cpu(vae)
    return vae


def box_image(height, width, boxes):
    image = -torch.ones(1, 3, height, width)
    for y0, y1, x0, x1 in boxes:
        image[..., y0:y1, x0:x1] = 1
    return image


def assert_equals_whole(vae, image):
    expected = vae.encode(image).latent_dist.mean
    torch.testing.assert_close(encode_bands(vae, image), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "height, width, boxes",
    [
        (512, 512, [(100, 301, 77, 400)]),
        (768, 768, [(300, 301, 200, 600)]),  # bands remain at the last resolution
        (512, 512, []),
        (512, 512, [(0, 512, 0, 512)]),
        (512, 512, [(0, 1, 511, 512)]),
        (384, 512, [(9, 10, 3, 200)]),
        (256, 640, [(0, 256, 320, 321)]),
        (512, 512, [(10, 60, 20, 300), (200, 500, 301, 310)]),
        (512, 512, [(255, 257, 127, 130)]),
    ],
)
@torch.no_grad()
def test_latents_equal_those_of_the_whole_image(vae, height, width, boxes):
    assert_equals_whole(vae, box_image(height, width, boxes))


@pytest.mark.parametrize(
    "height, width, boxes",
    [
        (256, 320, [(100, 201, 77, 300)]),
        (384, 384, [(150, 151, 100, 300)]),
        (256, 256, []),
        (256, 256, [(0, 1, 255, 256)]),
        (320, 256, [(9, 10, 3, 100)]),
        *((256, 256, [(low, low + 97, 255 - low, 256)]) for low in range(100, 108)),
    ],
)
@torch.no_grad()
def test_latents_of_a_tiny_autoencoder(height, width, boxes):
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), num_encoder_blocks=(1, 1, 2, 1)
    ).eval()
    optimize_for_cpu(vae)
    image = box_image(height, width, boxes)
    expected = vae.encode(image).latents
    found = encode_bands(vae, image)
    assert found is not None and expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_every_position_of_an_edge(vae):
    for low in range(160, 176):
        assert_equals_whole(vae, box_image(448, 448, [(low, low + 97, 448 - low - 3, 448)]))


@pytest.mark.numerics
@torch.no_grad()
def test_only_rounding_differs(vae):
    exact = copy.deepcopy(vae).double()
    image = box_image(320, 384, [(100, 211, 37, 300)])
    expected = exact.encode(image.double()).latent_dist.mean
    torch.testing.assert_close(
        encode_bands(exact, image.double()), expected, atol=1e-10, rtol=1e-10
    )
    errors = [
        f.double() - expected
        for f in (vae.encode(image).latent_dist.mean, encode_bands(vae, image))
    ]
    # The two round differently, so the largest errors are similar but not equal.
    assert errors[1].abs().max() < 5 * errors[0].abs().max()


@pytest.mark.numerics
@torch.no_grad()
def test_bands_in_chunks(vae, monkeypatch):
    image = box_image(512, 512, [(100, 301, 77, 400)])
    expected = vae.encode(image).latent_dist.mean
    monkeypatch.setattr(autoencoder, "LARGE_MAP", 1)
    monkeypatch.setattr(autoencoder, "CONV_CHUNK", 2**14)
    torch.testing.assert_close(encode_bands(vae, image), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_other_images_and_autoencoders_are_not_encoded_by_bands(vae):
    assert encode_bands(vae, torch.rand(1, 3, 64, 64)) is None
    stripes = [(y, y + 4, 0, 256) for y in range(0, 256, 8)]
    assert encode_bands(vae, box_image(256, 256, stripes)) is None
    small = [(y, y + 1, y, y + 1) for y in range(4, 32, 4)]
    assert encode_bands(vae, box_image(32, 32, small)) is None
    box = box_image(256, 256, [(100, 200, 100, 200)])
    assert encode_bands(vae, box) is not None
    assert encode_bands(vae, torch.cat([box, torch.rand_like(box)])) is None
    assert encode_bands(plain_autoencoder(), box) is None
    assert encode_bands(vae, box.to("meta")) is None  # would have to be read back
    torch.testing.assert_close(encode_bands(vae, box[:, :1]), encode_bands(vae, box))


def test_edges_are_where_rows_and_columns_change():
    image = box_image(64, 96, [(10, 20, 0, 33)])
    assert find_edges(image, 2) == [0, 10, 20, 64]
    assert find_edges(image, 3) == [0, 33, 96]


def test_a_box_at_1024_costs_a_tenth():
    axes = plan_axis(1024, [0, 231, 793, 1024], DEPTHS)
    fractions = [(len(axis.kept) / axis.length) ** 2 for axis in axes]
    assert [axis.length for axis in axes] == [1024, 512, 256, 128]
    assert sum(fractions) / 4 < 0.15
    for axis in axes:
        assert int(axis.counts.sum()) == axis.length and int(axis.counts.min()) > 0


@torch.no_grad()
def test_models_encode_boxes_by_bands_only_in_evaluation(monkeypatch):
    encoded = []

    def watched(vae, images):
        encoded.append(images.shape)
        return encode_bands(vae, images)

    model, batch = tiny_model().double(), make_batch(2, 256, 320)
    batch["bbox_mask"][1] *= -1
    kind = PROMPT_TYPES["bbox_mask"]
    latents = model.encode(batch["image"])
    inputs = (latents, batch[kind.mask_key], batch[kind.coords_key], kind)
    monkeypatch.setattr("SDMatte.modeling.sdmatte.encode_bands", watched)
    model.train()
    plain, _ = model.predict_latent(*inputs)
    assert not encoded
    ours, _ = model.eval().predict_latent(*inputs)
    assert encoded == [(2, 1, 256, 320)]
    torch.testing.assert_close(ours, plain, atol=1e-8, rtol=1e-8)
