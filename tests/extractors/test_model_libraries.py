"""timm's and open_clip's models give the features that those libraries give."""

from __future__ import annotations

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms import functional as TF

from aligntok.errors import ConfigError, WeightsError
from aligntok.extractors import resized
from aligntok.extractors.libraries import OpenCLIPExtractor, TimmExtractor

TOWERS = {
    "tiny-vit": {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
    "tiny-resnet": {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1]},
    "tiny-trunk": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
}


@pytest.fixture(autouse=True)
def tiny_models(add_towers):
    add_towers(TOWERS)


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 50, 70), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_a_timm_models_features_and_logits_are_its_own(name, images, tmp_path):
    model = timm.create_model(name).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    extractor = TimmExtractor(name, pretrained=tmp_path / "w.safetensors")
    config = timm.data.resolve_model_data_config(model, use_test_size=True)
    assert extractor.size == config["input_size"][1:]
    x = TF.resize(images.float() / 255, list(extractor.size), TF.InterpolationMode(config["interpolation"]))
    x = TF.normalize(x.clamp(0, 1), config["mean"], config["std"])
    with torch.no_grad():
        found = extractor(images)
        torch.testing.assert_close(found.logits, model(x), rtol=1e-4, atol=1e-5)
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-5)
    assert found.pooled.shape == (3, model.num_features)
    assert found.spatial is None
    assert extractor.title == f"timm-{name}"
    assert f"to {extractor.size[0]} x {extractor.size[1]}, mean (" in extractor.resize


def test_a_timm_model_without_classifier_has_no_logits(images):
    extractor = TimmExtractor("vit_small_patch14_dinov2", pretrained=False)
    assert extractor.title == "timm-vit_small_patch14_dinov2-random"
    extractor.size = (28, 28)
    extractor.model.patch_embed.strict_img_size = False
    extractor.model.pos_embed = torch.nn.Parameter(extractor.model.pos_embed[:, :5])
    assert extractor(images).logits is None


@pytest.mark.parametrize(
    ("tower", "reason"),
    [
        ({**TOWERS["tiny-vit"], "pool_type": "none"}, r"\(1, 1"),
        ({**TOWERS["tiny-trunk"], "image_size": 100}, "100"),
    ],
    ids=["no pooling", "another size"],
)
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_a_tower_without_pooled_features_of_its_size_is_refused_in_a_sentence(add_towers, tower, reason, place):
    add_towers({"odd": tower})
    said = rf"open_clip model 'odd' gives no pooled features .* pixels \(.*{reason}"
    with pytest.raises(ConfigError, match=said), torch.device(place):
        OpenCLIPExtractor("odd", pretrained=False)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lambda features, pre_logits=False: features, r"they are \(1, 101, 64\)"),
        (lambda features: features, "unexpected keyword argument 'pre_logits'"),
        (None, "'NoneType' object is not callable"),
    ],
)
def test_a_timm_model_without_pooled_features_is_refused_in_a_sentence(monkeypatch, head, reason):
    built = timm.create_model("test_vit")
    monkeypatch.setattr(built, "forward_head", head)
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: built)
    said = r"timm model 'test_vit' gives no pooled features \(N, D\) of its own 160 x 160 pixels \("
    with pytest.raises(ConfigError, match=said + f".*{reason}.*; choose another"):
        TimmExtractor("test_vit", pretrained=False)


def test_timm_weights_that_do_not_fit_are_named(tmp_path):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "v.safetensors")
    with pytest.raises(WeightsError, match=r"v\.safetensors does not fit \(missing"):
        TimmExtractor("test_resnet", pretrained=tmp_path / "v.safetensors")
    with pytest.raises(ConfigError, match="no timm model named 'resnet5000'"):
        TimmExtractor("resnet5000")


@pytest.mark.parametrize("name", TOWERS)
def test_an_open_clip_models_embedding_is_its_own(name, images, tmp_path):
    model = open_clip.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    extractor = OpenCLIPExtractor(name, pretrained=tmp_path / "w.pt")
    side = TOWERS[name]["image_size"]
    x = TF.resize(images.float() / 255, [side, side], TF.InterpolationMode.BICUBIC).clamp(0, 1)
    x = TF.normalize(x, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.no_grad():
        found = extractor(images)
        torch.testing.assert_close(found.pooled, model.encode_image(x), rtol=1e-4, atol=1e-5)
    assert found.pooled.shape == (3, 24)
    assert found.logits is None
    assert extractor.title == f"open_clip-{name}"
    assert not [key for key in extractor.state_dict() if "token_embedding" in key or "text" in key]


def test_open_clip_weights_that_do_not_fit_are_named(tmp_path):
    torch.save(open_clip.create_model("tiny-resnet").state_dict(), tmp_path / "r.pt")
    with pytest.raises(WeightsError, match=r"r\.pt does not fit"):
        OpenCLIPExtractor("tiny-vit", pretrained=tmp_path / "r.pt")
    with pytest.raises(WeightsError, match="no file or pretrained tag named"):
        OpenCLIPExtractor("ViT-B-32", pretrained="nobodys")


def test_a_file_says_of_which_set_its_weights_are(images, tmp_path, monkeypatch):
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "tiny-vit", {"a": {}, "b": {"quick_gelu": True, "mean": (0.5,) * 3}}
    )
    model = open_clip.create_model("tiny-vit", force_quick_gelu=True).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    extractor = OpenCLIPExtractor("tiny-vit", tmp_path / "w.pt", weights_of="b")
    x = (resized(images, (64, 64), "bicubic") - 0.5) / torch.tensor(open_clip.OPENAI_DATASET_STD).view(-1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(extractor(images).pooled, model.encode_image(x))
    assert extractor.title == "open_clip-tiny-vit-as-b"
    with pytest.raises(WeightsError, match="weights_of: no pretrained tag named 'nobodys'"):
        OpenCLIPExtractor("tiny-vit", False, weights_of="nobodys")
