"""Depthwise convolution is torch's, forward and backward; in bf16 on a CPU it is nearer float32 than torch's own is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from aligntok.ops.depthwise import depthwise_conv2d

CASES = {
    "strided": dict(stride=2),
    "padded": dict(stride=1, padding=2),
    "dilated": dict(stride=(2, 1), padding=(0, 2), dilation=2),
}


def given(dtype=torch.float32):
    """Images, filters, biases: leaves that want gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, 13, 11), (6, 1, 3, 3), (6,)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def with_gradients(convolve, leaves, **options):
    """What comes out, and the gradients of its squares."""
    y = convolve(*leaves, **options)
    return y, *torch.autograd.grad(y.float().square().sum(), leaves)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_it_is_a_convolution_with_as_many_groups_as_channels(options):
    found = with_gradients(depthwise_conv2d, given(), **options)
    for one, other in zip(found, with_gradients(F.conv2d, given(), groups=6, **options), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_under_autocast_it_gives_bf16_and_rounds_no_more_than_torch(options):
    exact = with_gradients(F.conv2d, given(torch.float64), groups=6, **options)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(depthwise_conv2d, given(), **options)
        plain = with_gradients(F.conv2d, given(), groups=6, **options)
    assert found[0].dtype == plain[0].dtype == torch.bfloat16
    assert [gradient.dtype for gradient in found[1:]] == [torch.float32] * 3
    for ours, torchs, true in zip(found, plain, exact, strict=True):
        assert (ours - true).abs().max() <= 1.1 * (torchs - true).abs().max()


def test_weights_in_bf16_get_gradients_in_bf16():
    leaves = given(torch.bfloat16)
    found = with_gradients(depthwise_conv2d, leaves, stride=2)
    assert {x.dtype for x in found} == {torch.bfloat16}
    plain = with_gradients(F.conv2d, leaves, groups=6, stride=2)
    torch.testing.assert_close(found, plain, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_on_a_cpu_half_a_precision_is_computed_in_float32_channels_last(precision, monkeypatch):
    seen = []

    def convolve(x, weight, *others):
        seen.append((x.dtype, weight.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return conv2d(x, weight, *others)

    conv2d = F.conv2d
    monkeypatch.setattr(F, "conv2d", convolve)
    with torch.autocast("cpu", precision):
        depthwise_conv2d(*given())
    depthwise_conv2d(*given())
    wide = torch.float32
    assert seen == [(wide, wide, True), (wide, wide, False)]
