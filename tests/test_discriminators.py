"""PatchGAN: its layers, its patches, images that it refuses."""

import copy

import pytest
import torch
from torch import nn

from aligntok.discriminators import PatchGAN
from aligntok.errors import ConfigError

SMALL = {"base_channels": 32, "num_layers": 2}


def test_the_papers_discriminator_has_2765633_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in PatchGAN().parameters()) == 2_765_633


def test_names_and_shapes_are_the_published_ones(shared_dir):
    lines = (shared_dir / "reference/checkpoint_layouts/patchgan_3layer.tsv").read_text().splitlines()
    with torch.device("meta"):
        own = {key: str(tuple(value.shape)) for key, value in PatchGAN().state_dict().items()}
    assert own == dict(line.split("\t") for line in lines)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_every_patch_of_a_non_square_image_gets_a_logit(norm):
    logits = PatchGAN(**SMALL, norm=norm)(torch.randn(2, 3, 32, 48))
    assert logits.shape == (2, 1, 6, 10)


def test_three_layers_judge_patches_of_70_pixels():
    model = PatchGAN(base_channels=8, norm="none")
    image = torch.randn(1, 3, 160, 160, requires_grad=True)
    model(image)[0, 0, 9, 9].backward()
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_convolutions_start_as_in_pix2pix():
    torch.manual_seed(0)
    model = PatchGAN()
    assert model.main[8].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.main[9].weight.mean().item() == pytest.approx(1, abs=0.01)
    assert model.main[9].weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not model.main[9].bias.any()


@pytest.mark.parametrize(("norm", "depends"), [("batch", True), ("group", False), ("none", False)])
def test_only_batch_norm_depends_on_how_the_batch_is_split(norm, depends):
    model, images = PatchGAN(**SMALL, norm=norm), torch.randn(4, 3, 24, 24)
    split = torch.cat([model(images[:1]), model(images[1:])])
    assert torch.allclose(model(images), split, atol=1e-5) is not depends


def test_batch_norm_in_groups_is_that_of_each_group_by_itself():
    """As published, where a process normalises its own images: outputs, gradients, and the mean of what is kept."""
    torch.manual_seed(0)
    model = PatchGAN(**SMALL, group_images=2)
    plain = [copy.deepcopy(model) for _ in range(3)]
    images = torch.randn(6, 3, 24, 24, requires_grad=True)
    logits, weights = model(images), torch.randn(6, 1, 4, 4)
    (logits * weights).sum().backward()
    for i, one in enumerate(plain):
        for norm in (m for m in one.modules() if hasattr(m, "group_images")):
            norm.group_images = None
        own = images.detach()[2 * i :][:2].requires_grad_()
        found = one(own)
        torch.testing.assert_close(logits[2 * i :][:2], found)
        (found * weights[2 * i :][:2]).sum().backward()
        torch.testing.assert_close(images.grad[2 * i :][:2], own.grad)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, sum(one.get_parameter(name).grad for one in plain), rtol=1e-4, atol=1e-4
        )
    for name, buffer in model.named_buffers():
        kept = torch.stack([one.get_buffer(name).float() for one in plain])
        torch.testing.assert_close(buffer.float(), kept.mean(dim=0))
    model.eval()
    assert model(images[:3]).shape == (3, 1, 4, 4)


@pytest.mark.parametrize("each", [2, 3, 4, 6])
def test_groups_that_processes_share_are_normalised_together(as_processes, each):
    """Of two with three images each: in groups of two the middle one is shared, in groups of four both."""
    torch.manual_seed(0)
    model, images = PatchGAN(**SMALL, group_images=each), torch.randn(6, 3, 24, 24)
    copies, weights = [copy.deepcopy(model) for _ in range(2)], torch.randn(6, 1, 4, 4)

    def walk(own, here):
        x = images[here].clone().requires_grad_()
        logits = own(x)
        (logits * weights[here]).sum().backward()
        return logits.detach(), x.grad

    whole = walk(model, slice(0, 6))
    both = as_processes(lambda rank: walk(copies[rank], slice(3 * rank, 3 * rank + 3)))
    for expected, found in zip(whole, zip(*both, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-5)
    for name, buffer in model.named_buffers():
        for one in copies:
            torch.testing.assert_close(one.get_buffer(name), buffer, rtol=1e-4, atol=1e-6)


def test_norm_none_normalises_nothing_and_keeps_biases():
    model = PatchGAN(**SMALL, norm="none")
    assert not [m for m in model.modules() if "Norm" in type(m).__name__]
    assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))


def test_in_channels_and_widths_are_options():
    model = PatchGAN(in_channels=1, base_channels=32, num_layers=5)
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [32, 64, 128, 256, 256, 256, 1]
    assert model(torch.randn(2, 1, 96, 96)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("shape", [(1, 3, 23, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_images_it_cannot_judge_are_refused(shape):
    with pytest.raises(ConfigError, match=r"takes images \(N, 3, H, W\) of at least 24 pixels"):
        PatchGAN(base_channels=8)(torch.zeros(shape))


def test_the_smallest_image_it_says_it_takes_works():
    assert PatchGAN(base_channels=8)(torch.randn(2, 3, 24, 24)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "no norm named 'layer'; known: batch, group, none"),
        ({"norm": "group", "base_channels": 8}, "multiples of 32, not 16"),
        ({"norm": "group", "group_images": 8}, "PatchGAN: group_images=8 is for norm='batch', not 'group'"),
        ({"num_layers": 0}, "num_layers is 0; it must be 1 or more"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PatchGAN(**options)
