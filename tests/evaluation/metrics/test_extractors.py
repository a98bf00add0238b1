"""What a user types becomes a frozen extractor, or an error that lists what there is."""

from __future__ import annotations

import pytest
import torch

from aligntok.errors import ConfigError
from aligntok.evaluation.metrics.features import build_extractor
from aligntok.extractors import EncoderFeatures
from aligntok.extractors.libraries import TimmExtractor
from aligntok.registry import ENCODERS, EXTRACTORS


@pytest.fixture
def asked(monkeypatch):
    """What the registry of extractors is asked to build, instead of building it."""
    seen = []
    monkeypatch.setattr(EXTRACTORS, "build", lambda config: seen.append(config) or torch.nn.Identity())
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


def test_an_encoders_name_gives_its_features(monkeypatch):
    class Patches(torch.nn.Module):
        downsample_factor = stride = 16

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
