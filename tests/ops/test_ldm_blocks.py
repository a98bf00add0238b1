"""The convolutional parts of LDM."""

import pytest
import torch
import torch.nn.functional as F

from aligntok.ops.ldm_blocks import AttnBlock, Downsample, Upsample, norm_silu


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


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_silu_are_the_two_layers_to_the_bit(trained, dtype):
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.GroupNorm(4, 8, eps=1e-6)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    norm.requires_grad_(trained)
    x = torch.randn(2, 8, 6, 5, generator=generator).to(dtype).requires_grad_()
    gradient = torch.randn(2, 8, 6, 5, generator=generator)
    asked = [x, *(p for p in norm.parameters() if p.requires_grad)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        found = norm_silu(x, norm)
    plain = F.silu(norm(x.float())).to(dtype)  # what autocast makes of the layers on a GPU
    assert found.dtype == dtype
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    expected = torch.autograd.grad(plain, asked, gradient.to(dtype))
    for own, other in zip(torch.autograd.grad(found, asked, gradient.to(dtype)), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu(x.float(), norm), F.silu(norm(x.float())), rtol=0, atol=0)


def test_norm_and_silu_have_the_derivatives_that_differences_have():
    norm = torch.nn.GroupNorm(2, 4).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: norm_silu(x, norm), (x, *norm.parameters()))


def test_norm_and_silu_keep_for_the_backward_pass_what_comes_in_alone():
    norm, x = torch.nn.GroupNorm(4, 8), torch.randn(2, 8, 6, 5, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_silu(x, norm)
    assert sum(t.numel() for t in kept if t.data_ptr() != x.data_ptr()) <= 2 * 8 + 2 * 2 * 4
