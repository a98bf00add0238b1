"""Images to patches and back."""

import pytest
import torch

from aligntok.ops.embeddings import from_packed_patches, from_patches, to_patches


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tokens_are_what_a_convolution_of_that_stride_sees(size):
    x = torch.randn(2, 5, 2 * size, 3 * size)
    conv = torch.nn.Conv2d(5, 7, size, stride=size, bias=False)
    tokens = to_patches(x, size) @ conv.weight.flatten(1).T
    torch.testing.assert_close(tokens, conv(x).flatten(2).mT)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_patches_go_back_to_their_places(size):
    x = torch.randn(2, 5, 2 * size, 3 * size)
    channels_last = to_patches(x, size).unflatten(2, (5, size, size)).permute(0, 1, 3, 4, 2).flatten(2)
    assert torch.equal(from_patches(channels_last, size, 2, 3), x)
    assert torch.equal(from_packed_patches(to_patches(x, size), size, 2, 3), x)
