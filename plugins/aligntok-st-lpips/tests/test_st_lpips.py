"""The loss has the published values, finite gradients for the reconstruction only, and stays frozen."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from aligntok.errors import ConfigError, WeightsError
from aligntok.plugins.testing import check_extractor, check_loss
from aligntok.registry import EXTRACTORS, LOSSES

NETS = {"vgg": 18, "alex": 21}  # with the smallest side each takes


@pytest.fixture(scope="module", params=NETS)
def net(request):
    return request.param


@pytest.fixture(scope="module")
def loss(net):
    return LOSSES.build({"type": "st_lpips", "net": net})


@pytest.fixture(scope="module")
def quick_loss():
    return LOSSES.build({"type": "st_lpips", "net": "alex"})


def images_and_noisy(*size, noise=0.3):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=generator) * 2 - 1
    return images, (images + noise * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def test_it_keeps_the_loss_contract(net):
    check_loss("st_lpips", image_size=(32, 48), net=net, pretrained=False)


def test_it_has_the_values_of_the_published_code(net, loss, monkeypatch):
    for unneeded, name in (("IPython", "embed"), ("torchsummary", "summary")):
        module = types.ModuleType(unneeded)
        setattr(module, name, None)
        monkeypatch.setitem(sys.modules, unneeded, module)
    published = pytest.importorskip("stlpips_pytorch.stlpips")
    reference = published.LPIPS(net=net, variant="shift_tolerant", verbose=False)
    images, noisy = images_and_noisy(50, 33)
    with torch.no_grad():
        torch.testing.assert_close(loss(images, noisy), reference(images, noisy).mean(), rtol=1e-5, atol=1e-7)


def test_gradients_are_finite_and_reach_the_reconstruction_only(loss):
    images, noisy = (x.requires_grad_() for x in images_and_noisy(32, 48))
    loss(images, noisy).backward()
    assert images.grad is None
    assert noisy.grad.isfinite().all()
    assert noisy.grad.abs().sum() > 0
    assert all(p.grad is None for p in loss.parameters())


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_flat_and_equal_images_give_zero_and_finite_gradients(loss, level):
    flat = torch.full((1, 3, 24, 24), level)
    reconstruction = flat.clone().requires_grad_()
    value = loss(flat, reconstruction)
    value.backward()
    assert value.item() == 0
    assert reconstruction.grad.isfinite().all()


def test_gradients_are_finite_where_every_channel_is_zero():
    loss = LOSSES.build({"type": "st_lpips", "net": "alex", "pretrained": False})
    loss.net.slice5[0].bias.fill_(-1e3)  # the last stage's ReLU now lets nothing through
    images, noisy = images_and_noisy(32, 32)
    loss(images, noisy.requires_grad_()).backward()
    assert noisy.grad.isfinite().all()


def test_a_gradient_step_brings_the_reconstruction_nearer(quick_loss):
    images, noisy = images_and_noisy(24, 24)
    reconstruction = noisy.requires_grad_()
    before = quick_loss(images, reconstruction)
    (gradient,) = torch.autograd.grad(before, reconstruction)
    after = quick_loss(images, reconstruction - 0.05 * gradient / gradient.abs().max())
    assert after < before


def test_a_shift_costs_less_than_noise_of_the_same_size(quick_loss):
    coarse, noise = images_and_noisy(12, 12)[0], images_and_noisy(48, 47)[0]
    images = F.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(-1, 1)
    here, shifted = images[..., :-1], images[..., 1:]
    noisy = here + (shifted - here).abs().mean() * noise.sign()
    assert quick_loss(here, shifted) < quick_loss(here, noisy)


def test_it_is_frozen_in_eval_mode_and_float32(quick_loss):
    assert not any(p.requires_grad for p in quick_loss.parameters())
    quick_loss.train()
    assert not any(module.training for module in quick_loss.modules())
    images, noisy = images_and_noisy(32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        value = quick_loss(images, noisy)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, quick_loss(images, noisy), rtol=0.05, atol=0)


def test_it_builds_on_the_meta_device_without_weights(net):
    with torch.device("meta"):
        loss = LOSSES.build({"type": "st_lpips", "net": net, "pretrained": False})
    assert all(p.is_meta for p in loss.parameters())


def test_mistakes_are_named(net, loss, tmp_path):
    allowed = NETS[net]
    loss(*images_and_noisy(allowed, 40))
    with pytest.raises(ConfigError, match=f"sides of {allowed} pixels or more"):
        loss(*images_and_noisy(allowed - 1, 40))
    with pytest.raises(ConfigError, match="shapes must agree"):
        loss(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 64))
    with pytest.raises(ConfigError, match="unknown net 'squeeze'; allowed: vgg, alex"):
        LOSSES.build({"type": "st_lpips", "net": "squeeze"})
    with pytest.raises(WeightsError, match="place the file there"):
        LOSSES.build({"type": "st_lpips", "net": net, "pretrained": str(tmp_path / "none.pth")})


def test_its_own_state_dict_loads_from_a_file(quick_loss, tmp_path):
    torch.save(quick_loss.state_dict(), tmp_path / "weights.pt")
    again = LOSSES.build({"type": "st_lpips", "net": "alex", "pretrained": str(tmp_path / "weights.pt")})
    assert again(*images_and_noisy(32, 32)) == quick_loss(*images_and_noisy(32, 32))


def test_its_trunks_are_extractors_under_their_own_names(net):
    check_extractor("st_lpips", net=net, pretrained=False)
    extractor = EXTRACTORS.build({"type": "st_lpips", "net": net})
    assert extractor.title == {"vgg": "STLPIPS-VGG16", "alex": "STLPIPS-AlexNet"}[net]
    assert EXTRACTORS.build({"type": "st_lpips", "net": net, "pretrained": False}).title.endswith("-random")


def test_features_are_means_of_what_the_distance_compares(net, loss):
    extractor = EXTRACTORS.build({"type": "st_lpips", "net": net})
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    pooled = extractor(pixels).pooled
    stages = loss.directions(pixels.float() / 127.5 - 1)
    expected = torch.cat([stage.mean(dim=(2, 3)) for stage in stages], dim=1)
    assert pooled.shape[1] == {"vgg": 1472, "alex": 1152}[net]
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-6)
