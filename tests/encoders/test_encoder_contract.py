"""What the base class does for every encoder, seen with a backbone small enough to check by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aligntok.encoders import Encoder, last_weight
from aligntok.errors import ConfigError


class Patches(Encoder):
    """One strided convolution and a batch norm."""

    def __init__(self, downsample_factor: int = 16, stride: int = 16, antialias: bool = False) -> None:
        super().__init__(
            downsample_factor=downsample_factor,
            stride=stride,
            out_dim=5,
            mean=(0.4, 0.5, 0.6),
            std=(0.1, 0.2, 0.3),
            antialias=antialias,
        )
        self.body = nn.Sequential(nn.Conv2d(3, 5, stride, stride), nn.BatchNorm2d(5), nn.Tanh())

    def backbone_features(self, pixels: Tensor) -> Tensor:
        return self.body(pixels)

    @property
    def last_layer(self) -> nn.Parameter:
        return last_weight(self)


@pytest.mark.parametrize(("f", "p"), [(16, 16), (16, 14), (8, 14), (32, 16)])
def test_features_lie_on_the_tokenizers_grid_whatever_the_patch(f, p):
    assert Patches(f, p)(torch.zeros(2, 3, 64, 96)).shape == (2, 5, 64 // f, 96 // f)


def test_images_are_normalised_with_the_backbones_own_mean_and_std():
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    expected = ((images + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(Patches().normalise(images), expected, rtol=1e-5, atol=1e-5)


def test_resize_leaves_the_image_alone_when_patch_and_factor_agree():
    images = torch.rand(1, 3, 32, 48)
    assert Patches(16, 16).resize(images) is images


def test_antialias_changes_what_a_shrunken_image_looks_like():
    images = torch.rand(1, 3, 64, 96)
    plain, smooth = (Patches(32, 16, antialias=flag).resize(images) for flag in (False, True))
    assert plain.shape == smooth.shape == (1, 3, 32, 48)
    assert not torch.allclose(plain, smooth)


def test_a_size_off_the_grid_is_refused_with_the_nearest_allowed_ones():
    with pytest.raises(
        ConfigError, match=r"an image size of \(70, 96\); its sides must be multiples of f = 16, such as \(64, 96\)"
    ):
        Patches()(torch.zeros(1, 3, 70, 96))


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (3, 32, 32)])
def test_anything_but_a_batch_of_colour_images_is_refused(shape):
    with pytest.raises(ConfigError, match=r"\(N, 3, H, W\), was given"):
        Patches()(torch.zeros(shape))


@pytest.mark.parametrize("f", [0, 1.5])
def test_a_factor_that_is_no_whole_number_is_refused(f):
    with pytest.raises(ConfigError, match="downsample_factor"):
        Patches(f)


def test_batch_norm_keeps_its_statistics_from_construction_on_and_in_training_mode():
    encoder = Patches()
    for _ in range(2):
        before = encoder.body[1].running_mean.clone()
        encoder(torch.rand(4, 3, 32, 32))
        assert torch.equal(encoder.body[1].running_mean, before)
        assert not encoder.body[1].training
        encoder.train()
        assert encoder.body.training


def test_checkpointing_the_whole_backbone_leaves_gradients_as_they_are_and_keeps_less():
    encoder, images = Patches(), torch.rand(2, 3, 64, 96)
    results = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: (kept.append(x), x)[1], lambda x: x):
            encoder(images).square().mean().backward()
        results.append((encoder.last_layer.grad.clone(), sum(x.numel() for x in kept)))
    assert torch.equal(results[0][0], results[1][0])
    assert results[1][1] < results[0][1]


def test_mean_and_std_are_on_the_meta_device_with_the_rest_and_not_in_the_state_dict():
    with torch.device("meta"):
        encoder = Patches()
    assert encoder.mean.is_meta
    assert encoder(torch.empty(1, 3, 32, 48, device="meta")).shape == (1, 5, 2, 3)
    assert not {"mean", "std"} & set(encoder.state_dict())


def test_the_last_weight_is_on_the_main_path():
    block = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1), "se": nn.Conv2d(4, 4, 1), "downsample": nn.Conv2d(3, 4, 1)})
    assert last_weight(block) is block["conv"].weight
    with pytest.raises(ConfigError, match="no linear or convolution"):
        last_weight(nn.ReLU())
