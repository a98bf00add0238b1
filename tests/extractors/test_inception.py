"""Inception-v3 is the network of torch-fidelity and pytorch-fid, from either's file; real weights are not at hand."""

from __future__ import annotations

import hashlib
import time

import pytest
import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from aligntok.errors import WeightsError
from aligntok.extractors.inception import InceptionV3
from aligntok.weights import hub


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights in a file, with batch norm statistics that are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    network = InceptionV3(pretrained=False)
    for name, value in network.state_dict().items():
        if name.endswith(("bn.weight", "bn.bias", "running_mean", "running_var", "fc.bias")):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return InceptionV3(pretrained=weights)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_are_torch_fidelitys(inception, weights, images):
    theirs = FeatureExtractorInceptionV3("it", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    seen = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        pooled, logits = theirs(images)
        found = inception(images)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found.logits, logits + theirs.fc.bias, atol=1e-2)  # the Inception Score is without bias
    # ADM: `spatial[..., :7]` of TensorFlow's (N, 17, 17, 192), then one row an image.
    channels_last = seen[0].permute(0, 2, 3, 1)[..., :7]
    torch.testing.assert_close(found.spatial, channels_last.reshape(2, 17 * 17 * 7), rtol=1e-5, atol=1e-6)
    assert (found.spatial >= 0).all()
    assert found.spatial.shape == (2, 2023)


def test_pytorch_fids_names_are_the_same_ones(inception):
    """It loads its file into torchvision's network of 1008 classes."""
    theirs = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in inception.state_dict().items()}


def test_counters_and_the_auxiliary_classifier_of_a_file_are_passed_over(weights, inception, tmp_path):
    tensors = {k: v for k, v in torch.load(weights).items() if not k.endswith("num_batches_tracked")}
    torch.save({**tensors, "AuxLogits.fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    again = InceptionV3(pretrained=tmp_path / "other.pth")
    assert torch.equal(again.fc.weight, inception.fc.weight)


def test_only_the_published_file_has_the_title_that_gives_fid(weights, inception, monkeypatch):
    assert inception.title == "Inception-v3-other"
    monkeypatch.setattr("aligntok.extractors.inception.SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    assert InceptionV3(pretrained=weights).title == "Inception-v3"


def test_random_weights_never_have_the_title_that_gives_fid():
    with torch.device("meta"):
        assert InceptionV3(pretrained=False).title == "Inception-v3-random"


@pytest.mark.parametrize("name", ["weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"])
def test_the_usual_file_is_found_under_either_librarys_name(name, weights, inception, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / name).symlink_to(weights)
    assert torch.equal(InceptionV3().fc.weight, inception.fc.weight)


@pytest.mark.parametrize("offline", [True, False])
def test_weights_that_cannot_be_had_are_one_error_at_once(monkeypatch, tmp_path, offline):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    monkeypatch.setattr(hub, "unreachable", lambda url: f"no answer from {url}")
    began = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        InceptionV3()
    assert time.monotonic() - began < 5
    for part in ("inception_v3", "github.com/toshas", "weights-inception-2015-12-05-6726825d.pth", str(tmp_path)):
        assert part in str(caught.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth does not fit \(missing Conv2d_1a"):
        InceptionV3(pretrained=tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no weights at .*gone"):
        InceptionV3(pretrained=tmp_path / "gone.pth")
