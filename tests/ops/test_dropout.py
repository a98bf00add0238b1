"""Dropout that follows the sample: the same however a batch is split, and otherwise as torch's and timm's."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Attention
from torch import nn

from aligntok.ops.dropout import SampleDropout, SampleDropPath, follow_samples, set_seeds


def fmix32(x):
    """MurmurHash3's finaliser, in plain integers."""
    x ^= x >> 16
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def drawn(seed, number, place):
    """What the `place`-th element (0, 1, ...) of a sample is compared by, in layer `number`."""
    start = (seed + number * 0x9E3779B9) % 2**32
    return fmix32(fmix32(start) ^ fmix32(place + 1)) % 2**31


@pytest.fixture
def layers():
    model = nn.Sequential(nn.Dropout(0.4), nn.Linear(2, 2), DropPath(0.25), nn.Dropout(0.0), nn.Dropout(0.4))
    return model, follow_samples(model)


def test_those_that_drop_are_found_in_order(layers):
    model, found = layers
    assert [type(each) for each in found] == [SampleDropout, SampleDropPath, SampleDropout]
    assert [id(each) for each in found] == [id(model[i]) for i in (0, 2, 4)]
    assert follow_samples(model) == found


def test_masks_are_the_hash_of_seed_layer_and_place(layers):
    _, found = layers
    seeds = [5, 2**31 - 1]
    set_seeds(found, torch.tensor(seeds, dtype=torch.int32))
    x = torch.ones(2, 3, 5)
    for number in (0, 2):
        kept = [[drawn(seed, number, place) >= int(0.4 * 2**31) for place in range(15)] for seed in seeds]
        expected = torch.tensor(kept).reshape(2, 3, 5) / 0.6
        torch.testing.assert_close(found[number](x), expected)
    kept = torch.tensor([drawn(seed, 1, 0) >= 2**29 for seed in seeds])
    torch.testing.assert_close(found[1](x), kept[:, None, None] / 0.75 * x)


def test_a_sample_is_dropped_alike_however_the_batch_is_split(layers):
    _, found = layers
    seeds, x = torch.arange(8, dtype=torch.int32), torch.randn(8, 4, 6)
    for layer in found:
        layer.seeds = seeds
        whole = layer(x)
        layer.seeds = seeds[5:]
        assert torch.equal(layer(x[5:]), whole[5:])
        layer.seeds = seeds
        windows = layer(x.reshape(16, 2, 6))  # two of each sample
        assert torch.equal(windows.reshape(8, 4, 6), whole) or isinstance(layer, SampleDropPath)


def test_attention_drops_weights_of_a_sample_alike_however_the_batch_is_split():
    attention = Attention(8, num_heads=2, attn_drop=0.5)
    assert attention.fused_attn
    (dropout,), x = follow_samples(attention), torch.randn(8, 5, 8)
    dropout.seeds = torch.arange(8, dtype=torch.int32)
    whole = attention(x)
    assert not torch.allclose(whole, attention.eval()(x))
    dropout.seeds = dropout.seeds[5:]
    torch.testing.assert_close(attention.train()(x[5:]), whole[5:], rtol=0, atol=1e-6)
    assert follow_samples(Attention(8, num_heads=2)) == []


def test_the_share_that_is_dropped_is_the_rate_in_every_sample_and_layer(layers):
    _, found = layers
    set_seeds(found, torch.arange(50, dtype=torch.int32))
    masks = [layer(torch.ones(50, 20_000)) == 0 for layer in (found[0], found[2])]
    for mask in masks:
        assert (mask.float().mean(1) - 0.4).abs().max() < 0.02  # 5.7 standard deviations
    both = (masks[0] & masks[1]).float().mean()
    neighbours = (masks[0][1:] & masks[0][:-1]).float().mean()
    assert abs(float(both) - 0.16) < 0.002
    assert abs(float(neighbours) - 0.16) < 0.002
    set_seeds(found, torch.arange(20_000, dtype=torch.int32))
    assert abs(float((found[1](torch.ones(20_000, 1)) == 0).float().mean()) - 0.25) < 0.015


def test_without_seeds_or_in_evaluation_they_are_what_they_were(layers):
    model, found = layers
    x, plain = torch.ones(4, 6), nn.Dropout(0.4)
    torch.manual_seed(1)
    expected = plain(x)
    torch.manual_seed(1)
    assert torch.equal(found[0](x), expected)
    set_seeds(found, torch.zeros(3, dtype=torch.int32))  # which four rows are not made of
    torch.manual_seed(1)
    assert torch.equal(found[0](x), expected)
    torch.testing.assert_close(found[1](torch.ones(401, 2)).unique(), torch.tensor([0, 4 / 3]))
    model.eval()
    assert all(layer(x) is x or torch.equal(layer(x), x) for layer in found)
