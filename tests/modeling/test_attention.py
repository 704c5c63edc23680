"""Masked self-attention is exact without the keys that have no influence."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention

from SDMatte.modeling.attention import (
    AttentionContext,
    KeySelection,
    MattingAttnProcessor,
    build_key_selections,
    score_bias,
    select_keys,
)

pytestmark = pytest.mark.numerics


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Attention(query_dim=32, heads=4, dim_head=8, processor=MattingAttnProcessor(masked=True))


def attend(layer, tokens, keep, mode="bias"):
    context = AttentionContext(keys={tokens.shape[1]: select_keys(keep, mode)})
    with torch.no_grad():
        return layer(tokens, context=context)


def plain(layer, tokens, bias=None):
    """The definition, with the whole score matrix, in double precision."""
    layer = copy.deepcopy(layer).double()
    tokens = tokens.double()
    batch, count, width = tokens.shape
    split = lambda x: x.reshape(batch, count, 4, 8).transpose(1, 2)  # noqa: E731
    with torch.no_grad():
        query, key, value = (split(f(tokens)) for f in (layer.to_q, layer.to_k, layer.to_v))
        scores = query @ key.transpose(-1, -2) * 8**-0.5
        if bias is not None:
            scores = scores + bias[:, None, None, :]
        out = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, count, width)
        return layer.to_out[0](out).float()


def test_keep_all_equals_no_mask(layer):
    tokens = torch.randn(2, 48, 32)
    assert select_keys(torch.ones(2, 48)) == [KeySelection(None, None)]
    torch.testing.assert_close(attend(layer, tokens, torch.ones(2, 48)), plain(layer, tokens))


def test_keep_none_equals_no_mask(layer):
    tokens = torch.randn(1, 48, 32)
    torch.testing.assert_close(attend(layer, tokens, torch.zeros(1, 48)), plain(layer, tokens))


def test_different_masks_in_a_batch_equal_the_definition(layer):
    tokens = torch.randn(3, 48, 32)
    keep = torch.zeros(3, 48)
    keep[0, :5] = 1
    keep[1, 10:40] = 1
    expected = plain(layer, tokens, (1 - keep) * -10000)
    torch.testing.assert_close(attend(layer, tokens, keep), expected, atol=1e-5, rtol=1e-4)
    first, second, third = select_keys(keep)
    assert first.index.shape == (1, 5) and second.index.shape == (1, 30)
    assert third == KeySelection(None, None)  # it is empty, so it needs all keys


def test_images_with_equally_many_keys_share_a_call_without_bias(layer):
    tokens = torch.randn(2, 48, 32)
    keep = torch.zeros(2, 48)
    keep[0, :5] = 1
    keep[1, 10:15] = 1
    (keys,) = select_keys(keep)
    assert keys.index.shape == (2, 5) and keys.bias is None
    expected = plain(layer, tokens, (1 - keep) * -10000)
    torch.testing.assert_close(attend(layer, tokens, keep), expected, atol=1e-5, rtol=1e-4)


def test_maps_on_a_device_are_not_read_back(layer):
    keep = torch.zeros(2, 48)
    keep[:, :5] = 1
    (keys,) = select_keys(keep.to("meta"))  # has no values to read
    assert keys.index is None and keys.bias.shape == (2, 48)
    tokens = torch.randn(2, 48, 32)
    context = AttentionContext(keys={48: select_keys(keep, all_keys=True)})
    with torch.no_grad():
        found = layer(tokens, context=context)
    torch.testing.assert_close(found, attend(layer, tokens, keep), atol=1e-5, rtol=1e-4)


def test_a_heat_map_equals_the_definition(layer):
    tokens = torch.randn(2, 64, 32)
    keep = torch.exp(-torch.linspace(-2, 2, 64).pow(2)).repeat(2, 1) * torch.tensor([[0.9], [1.0]])
    expected = plain(layer, tokens, (1 - keep) * -10000)
    torch.testing.assert_close(attend(layer, tokens, keep), expected, atol=1e-4, rtol=1e-3)
    assert all(keys.index.shape[1] < 64 for keys in select_keys(keep))


def test_a_masked_key_has_no_influence(layer):
    tokens = torch.randn(1, 48, 32)
    keep = (torch.arange(48) < 20).float()[None]
    before = attend(layer, tokens, keep)
    changed = tokens.clone()
    changed[:, 30] += 100
    after = attend(layer, changed, keep)
    others = torch.arange(48) != 30
    torch.testing.assert_close(after[:, others], before[:, others])
    assert not torch.allclose(after[:, 30], before[:, 30], atol=0.01)  # it still is a query


def test_gradients_do_not_reach_masked_keys(layer):
    tokens = torch.randn(1, 12, 32, requires_grad=True)
    keep = (torch.arange(12) < 4).float()[None]
    context = AttentionContext(keys={12: select_keys(keep)})
    layer(tokens, context=context)[:, 0].sum().backward()
    per_token = tokens.grad.abs().sum(-1)[0]
    assert (per_token[4:] == 0).all() and (per_token[:4] > 0).all()


def test_levels_are_resized_from_the_latent_grid():
    prompt = -torch.ones(1, 1, 64, 128)
    prompt[..., 8:16, 24:] = 1  # row 1, columns 3.. of the 8 x 16 grid
    keys = build_key_selections(prompt, (8, 16), num_levels=4)
    assert sorted(keys) == [2, 8, 32, 128]
    assert keys[128][0].index[0].tolist() == [16 + column for column in range(3, 16)]
    # The 4 x 8 grid takes rows 0, 2, 4, 6 of the 8 x 16 one: the object vanishes, and with it the
    # mask. A direct resize would pick other pixels.
    assert keys[32] == [KeySelection(None, None)]


def test_mask_modes():
    keep = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert score_bias(keep, "bias").tolist() == [-10000, -7500, -5000, 0]
    assert score_bias(keep, "binary").tolist() == [-10000, -10000, 0, 0]
    torch.testing.assert_close(score_bias(keep, "log").exp(), keep)
