"""The image prior of small models."""

import pytest
import torch
from models import ROUNDING, make_batch, tiny_model

from SDMatte.errors import ConfigError
from SDMatte.modeling import SDMatte
from SDMatte.modeling.prior import ImagePrior

LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def model():
    return tiny_model(image_prior=LITE)


def test_published_models_have_none():
    model = tiny_model()
    assert model.image_prior is None
    assert model.encode_prior(torch.zeros(1, 3, 64, 64)) is None
    assert not any("prior" in name for name in model.state_dict())


def test_residuals_have_the_shapes_of_the_down_blocks(model):
    """In every combination of blocks with and without attention."""
    plain, attention = "DownBlock2D", "CrossAttnDownBlock2D"
    image = torch.zeros(2, 3, 64, 128)
    for kinds in ([plain, attention, attention, plain], [attention] * 3 + [plain], [plain] * 4):
        config = {
            "down_block_types": kinds,
            "block_out_channels": [16, 32, 48, 64],
            "norm_num_groups": 8,
        }
        prior = ImagePrior(LITE, config, latent_stride=4)
        scales = [4, 8, 16, 32]
        for i, kind in enumerate(kinds[:-1]):  # diffusers adds it after the downsampling
            scales[i] *= 2 if kind == plain else 1
        shapes = [tuple(r.shape) for r in prior(image)]
        widths = config["block_out_channels"]
        assert shapes == [(2, w, 64 // s, 128 // s) for w, s in zip(widths, scales, strict=True)]


@pytest.mark.numerics
def test_prior_sees_the_image_and_nothing_else_is_changed(model):
    batch = make_batch()
    with torch.no_grad():
        with_prior = model(batch)
        for projection in model.image_prior.projections:
            projection[-1].weight.zero_()
            projection[-1].bias.zero_()
        without = model(batch)
        model.image_prior = None
        plain = model(batch)
    torch.testing.assert_close(without, plain, **ROUNDING)
    assert (with_prior - without).abs().max() > 1e-3


def test_prior_is_trained_with_frozen_statistics():
    model = tiny_model(image_prior=LITE).train()
    before = {n: b.clone() for n, b in model.image_prior.named_buffers()}
    model(make_batch(), aux_input="bbox_mask").mean().backward()
    assert all(p.grad is not None for p in model.image_prior.projections.parameters())
    assert any(p.grad.abs().max() > 0 for p in model.image_prior.encoder.parameters())
    assert all(torch.equal(before[n], b) for n, b in model.image_prior.named_buffers())


def test_saved_and_loaded(model, tmp_path):
    model = tiny_model(image_prior=LITE)
    model.save_pretrained(tmp_path)
    loaded = SDMatte.from_pretrained(tmp_path)
    assert loaded.settings.image_prior == LITE
    for name, value in model.state_dict().items():  # stored as they are
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_invalid_names():
    with pytest.raises(ConfigError, match="timm has no model 'resnet51'"):
        tiny_model(image_prior="resnet51")
    with pytest.raises(ConfigError, match="has features at strides"):
        tiny_model(image_prior="vit_tiny_patch16_224")
