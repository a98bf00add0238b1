"""What a user types becomes a frozen extractor, or an error that lists what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from aligntok.errors import ConfigError
from aligntok.evaluation.comparison.criterion import distance_names
from aligntok.evaluation.comparison.settings import ComparisonSettings
from aligntok.evaluation.metrics.features import build_extractor, title_with_weights
from aligntok.extractors import EncoderFeatures
from aligntok.extractors.libraries import TimmExtractor
from aligntok.registry import ENCODERS, EXTRACTORS


class Named(torch.nn.Identity):
    title = "Inception-v3"


@pytest.fixture
def asked(monkeypatch):
    """What the registry of extractors is asked to build, instead of building it."""
    seen = []
    monkeypatch.setattr(EXTRACTORS, "build", lambda config: seen.append(config) or Named())
    return seen


@pytest.mark.parametrize(
    ("word", "config"),
    [
        ("inception_v3", {"type": "inception_v3"}),
        ("inception_v3:/a/b.pth", {"type": "inception_v3", "pretrained": "/a/b.pth"}),
        ("timm:resnet50", {"type": "timm", "model": "resnet50"}),
        ("timm:resnet50.a1_in1k", {"type": "timm", "model": "resnet50.a1_in1k"}),
        ("open_clip:ViT-B-32/openai", {"type": "open_clip", "model": "ViT-B-32", "pretrained": "openai"}),
        ("open_clip:ViT-B-32", {"type": "open_clip", "model": "ViT-B-32", "pretrained": True}),
    ],
)
def test_a_word_is_a_config(word, config, asked):
    build_extractor(word)
    assert asked == [config]


def test_a_config_is_built_frozen():
    extractor = build_extractor(dict(type="timm", model="test_resnet", pretrained=False))
    assert isinstance(extractor, TimmExtractor)
    assert not extractor.training
    assert not [p for p in extractor.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", ["mine.safetensors", "test_resnet.pt"])
def test_with_a_file_of_weights_the_title_is_not_that_of_the_published_ones(name, tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    path = tmp_path / name
    if path.suffix == ".pt":
        (tmp_path / "w.pt").rename(path)
    else:
        save_file(torch.load(tmp_path / "w.pt"), path)
    config = dict(type="timm", model="test_resnet", pretrained=path)
    assert build_extractor(config).title == f"timm-test_resnet-{path.stem}"
    foretold = distance_names(ComparisonSettings(tokenizers={"a": "a.py"}, extractors=[config], reference_encoder="x"))
    assert foretold == [f"FD-timm-test_resnet-{path.stem}", f"KD-timm-test_resnet-{path.stem}"]


@pytest.mark.parametrize(
    ("title", "pretrained", "expected"),
    [
        ("open_clip-ViT-B-32-openai", "openai", "open_clip-ViT-B-32-openai"),
        ("open_clip-ViT-B-32", "openai", "open_clip-ViT-B-32-openai"),
        ("open_clip-ViT-B-32", "/w/ViT-B-32.pt", "open_clip-ViT-B-32-ViT-B-32"),
        ("Inception-v3", "/w/any.pth", "Inception-v3"),
        ("Inception-v3-other", "/w/any.pth", "Inception-v3-other"),
        ("EfficientNetLite0", Path("my weights.pt"), "EfficientNetLite0-my_weights"),
        ("EfficientNetLite0", True, "EfficientNetLite0"),
        ("EfficientNetLite0-random", False, "EfficientNetLite0-random"),
    ],
)
def test_a_title_ends_with_the_file_or_set_that_the_weights_are_of(title, pretrained, expected):
    assert title_with_weights(title, pretrained) == expected


def test_an_encoders_name_gives_its_features(monkeypatch):
    class Patches(torch.nn.Module):
        downsample_factor, out_dim = 16, 3

        def forward(self, images):
            return torch.nn.functional.avg_pool2d(images, 16)

    monkeypatch.setitem(ENCODERS._module_dict, "patches", Patches)
    extractor = build_extractor("patches")
    assert isinstance(extractor, EncoderFeatures)
    assert extractor.title == "patches"


def test_mistakes_list_extractors_and_encoders():
    with pytest.raises(ConfigError) as caught:
        build_extractor("inception_v4")
    unknown = "no extractor or encoder named 'inception_v4'; did you mean 'inception_v3'"
    for part in (unknown, "timm:MODEL", "dinov2", "ldm_cnn"):
        assert part in str(caught.value)
    for word in ("timm", "open_clip:"):
        with pytest.raises(ConfigError, match="needs a model; write"):
            build_extractor(word)
