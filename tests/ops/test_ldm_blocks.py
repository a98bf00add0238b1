"""The convolutional parts of LDM."""

import torch
import torch.nn.functional as F

from aligntok.ops.ldm_blocks import AttnBlock, Downsample, Upsample


def test_attention_is_one_head_over_all_positions():
    block, x = AttnBlock(32), torch.randn(2, 32, 3, 5)
    h = F.group_norm(x, 32, block.norm.weight, block.norm.bias, eps=1e-6)
    q, k, v = (layer(h).flatten(2) for layer in (block.q, block.k, block.v))  # (N, C, h*w)
    weights = (q.mT @ k / 32**0.5).softmax(-1)
    expected = x + block.proj_out((v @ weights.mT).view_as(x))
    torch.testing.assert_close(block(x), expected)


def test_downsample_pads_right_and_bottom_only():
    layer = Downsample(32)
    x = torch.randn(1, 32, 4, 6)
    padded = F.pad(x, (0, 1, 0, 1))
    assert torch.equal(layer(x), F.conv2d(padded, layer.conv.weight, layer.conv.bias, stride=2))


def test_upsample_repeats_pixels_before_its_convolution():
    layer = Upsample(32)
    x = torch.randn(1, 32, 2, 3)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(layer(x), layer.conv(repeated))
