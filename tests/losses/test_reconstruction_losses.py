"""L1 and LPIPS: their formulas, and where LPIPS's weights come from."""

import time
import urllib.error
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from aligntok.errors import ConfigError, WeightsError
from aligntok.losses.lpips import TRUNKS, LPIPSLoss, _BySlices, _Distance
from aligntok.losses.reconstruction import L1Loss
from aligntok.weights import hub


@pytest.fixture(scope="module")
def lpips_loss():
    return LPIPSLoss("alex", pretrained=False)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def published_lpips(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about the arguments lpips 0.1.4 gives it
        import lpips

        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def test_l1_is_the_mean_over_all_elements():
    loss = L1Loss()(torch.zeros(2, 3, 4, 6), torch.full((2, 3, 4, 6), -0.5))
    assert loss.item() == 0.5


def test_l1_of_half_precision_is_summed_in_float32():
    loss = L1Loss()(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("loss", [L1Loss(), LPIPSLoss("alex", pretrained=False)])
def test_images_of_unlike_shape_are_not_broadcast(loss):
    assert (loss.at, loss.inputs) == ("reconstruction", ("images", "reconstruction"))
    with pytest.raises(ConfigError, match="shapes must agree"):
        loss(torch.zeros(2, 3, 32, 32), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(("net", "count"), [("vgg", 14_716_160), ("alex", 2_470_848)])
def test_lpips_has_its_published_size_all_frozen(net, count):
    with torch.device("meta"):
        loss = LPIPSLoss(net, pretrained=False)
        assert loss(torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 32, 48)).shape == ()
    assert sum(p.numel() for p in loss.parameters()) == count
    assert not any(p.requires_grad for p in loss.parameters())


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_is_the_published_metric(net, tmp_path):
    published = published_lpips(net)
    file = tmp_path / "lpips.safetensors"
    save_file({k: v for k, v in published.state_dict().items() if k.startswith("net.")}, file)
    x, y = images(2, 3, 40, 56), images(2, 3, 40, 56, seed=1)
    y_hat = y.clone().requires_grad_()
    loss = LPIPSLoss(net, pretrained=file)(x, y_hat)
    expected = published(x, y.requires_grad_()).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    # Another memory layout rounds otherwise, and a maximum of two nearly equal values may then be the other one: its
    # gradient goes to the pixel beside.
    near = (y_hat.grad - y.grad).abs() <= 1e-4 * y.grad.abs().max()
    assert near.float().mean() > 0.97
    assert torch.nn.functional.cosine_similarity(y_hat.grad.flatten(), y.grad.flatten(), dim=0) > 0.99


def test_torchvisions_file_is_a_trunk_too(tmp_path, lpips_loss):
    features = {f"features.{k.partition('.')[2]}": v for k, v in lpips_loss.net.state_dict().items()}
    torch.save({**features, "classifier.1.weight": torch.zeros(2)}, tmp_path / "alexnet.pth")
    loss = LPIPSLoss("alex", pretrained=tmp_path / "alexnet.pth")
    x, y = images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1)
    assert torch.equal(loss(x, y), lpips_loss(x, y))


def test_torchvisions_file_is_found_in_the_hub_folder(tmp_path, lpips_loss, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    features = {f"features.{k.partition('.')[2]}": v for k, v in lpips_loss.net.state_dict().items()}
    torch.save(features, folder / "alexnet-owt-7be5be79.pth")
    with pytest.raises(WeightsError, match=r"alexnet-owt-7be5be79\.pth is not the file of .* with 7be5be79; remove"):
        LPIPSLoss("alex")
    digest = hub.sha256_of(folder / "alexnet-owt-7be5be79.pth")
    monkeypatch.setitem(TRUNKS, "alex", TRUNKS["alex"]._replace(sha256=digest[:8]))
    x, y = images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1)
    assert torch.equal(LPIPSLoss("alex")(x, y), lpips_loss(x, y))


def test_offline_names_the_file_to_place_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"place it at .*/hub/checkpoints/vgg16-397923af\.pth"):
        LPIPSLoss()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("silent", [True, False])
def test_a_network_that_hangs_or_fails_is_not_waited_for(tmp_path, monkeypatch, silent):
    def urlopen(*args, **kwargs):
        if silent:
            time.sleep(2)
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(WeightsError, match="no answer from|no route"):
        LPIPSLoss("alex")
    assert time.monotonic() - start < 1.5


def test_a_file_of_another_network_is_refused(tmp_path, lpips_loss):
    save_file({k: v.contiguous() for k, v in lpips_loss.net.state_dict().items()}, tmp_path / "alex.safetensors")
    with pytest.raises(WeightsError, match="does not fit"):
        LPIPSLoss("vgg", pretrained=tmp_path / "alex.safetensors")


def test_lpips_stays_in_eval_mode(lpips_loss):
    assert not any(module.training for module in lpips_loss.train().modules())


def test_lpips_is_zero_for_equal_images_and_gradients_are_finite(lpips_loss):
    x = images(1, 3, 48, 32)
    y = x.clone().requires_grad_()
    loss = lpips_loss(x, y)
    loss.backward()
    assert loss.item() == 0
    assert y.grad.isfinite().all()


def in_plain_layers(own, target, weight):
    """The distance as it is written down."""
    own, target = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (own, target))
    return F.conv2d((own - target).square(), weight).mean()


def test_the_distance_of_activations_is_that_of_plain_layers():
    own = images(2, 5, 3, 4).double().requires_grad_()
    target, weight = images(2, 5, 3, 4, seed=1).double(), images(1, 5, 1, 1, seed=2).double()
    found, expected = _Distance.apply(own, target, weight), in_plain_layers(own, target, weight)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    (gradient,), (plain,) = (torch.autograd.grad(3 * value, own) for value in (found, expected))
    torch.testing.assert_close(gradient, plain, rtol=1e-5, atol=1e-7)


def test_a_position_without_activations_has_a_finite_gradient():
    x, target = torch.zeros(1, 4, 2, 2, requires_grad=True), images(1, 4, 2, 2)
    _Distance.apply(x, target, torch.ones(1, 4, 1, 1)).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_slices_of_a_batch_have_the_loss_and_the_gradient_of_all_of_it(size):
    whole, cut = LPIPSLoss("alex", pretrained=False, slice_images=99), LPIPSLoss("alex", False, slice_images=size)
    cut.load_state_dict(whole.state_dict())
    x, y = images(5, 3, 32, 40), images(5, 3, 32, 40, seed=1).requires_grad_()
    seen = []
    cut.net.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    own, plain = cut(x, y), whole(x, y)
    assert max(seen) == size
    assert sum(seen) == 2 * len(x)
    torch.testing.assert_close(own, plain)
    (found,), (expected,) = (torch.autograd.grad(0.3 * value, y) for value in (own, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(cut(x, y), own)


def test_gradients_too_small_for_float16_are_not_lost_on_the_way():
    x, y = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1).requires_grad_()
    value = _BySlices.apply(y, x, lambda image, own: 1e-4 * (own - image).half().float().mean(), 2)
    (found,) = torch.autograd.grad(value, y)
    torch.testing.assert_close(found, torch.full_like(y, 1e-4 / y.numel()), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("net", "smallest"), [("vgg", 16), ("alex", 31)])
def test_the_smallest_images_work_and_smaller_ones_are_refused(net, smallest):
    with torch.device("meta"):
        loss = LPIPSLoss(net, pretrained=False)
        x = torch.zeros(1, 3, smallest, 64)
        assert loss(x, x).shape == ()
        with pytest.raises(ConfigError, match=f"at least {smallest} pixels a side"):
            loss(x[:, :, 1:], x[:, :, 1:])


def test_an_unknown_net_is_refused():
    with pytest.raises(ConfigError, match="no net named 'squeeze'; known: vgg, alex"):
        LPIPSLoss("squeeze")


def test_building_lpips_says_nothing(capfd):
    LPIPSLoss("alex", pretrained=False)
    assert capfd.readouterr() == ("", "")
