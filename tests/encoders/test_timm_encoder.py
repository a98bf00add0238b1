"""The timm encoder over the families it promises, and the paper's encoders by name."""

from __future__ import annotations

import pytest
import torch

from aligntok.encoders import timm as module
from aligntok.encoders.timm import DINOv2Encoder, MAEEncoder, SigLIP2Encoder, TimmEncoder
from aligntok.errors import ConfigError
from aligntok.plugins.testing import check_encoder
from aligntok.registry import ENCODERS
from aligntok.weights.libraries import meta_twin

TINY = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    "options",
    [
        {"model_name": TINY},
        {"model_name": TINY, "out_index": 3, "final_norm": False},
        {"model_name": "vit_pe_core_tiny_patch16_384.fb", "model_args": {"depth": 2}},
        {"model_name": "vit_small_patch16_dinov3.lvd1689m", "model_args": {"depth": 2}},
        {"model_name": "vit_small_patch16_dinov3_qkvb", "model_args": {"depth": 2, "swiglu_mlp": True}},
        {"model_name": "resnet18", "downsample_factor": 8},
        {"model_name": "resnet18", "downsample_factor": 16},
        {"model_name": "efficientnet_b0", "downsample_factor": 8},
        {"model_name": "efficientnet_b0", "downsample_factor": 16},
        {"model_name": "convnext_atto", "stride": 8, "downsample_factor": 16},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_family_keeps_the_encoders_contract(options):
    check_encoder("timm", image_size=(32, 48), **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dinov2", {"size": "small", "model_args": {"depth": 2}}),
        ("dinov2", {"size": "small", "registers": True, "model_args": {"depth": 2}}),
        ("dinov2", {"size": "giant", "model_args": {"depth": 1, "embed_dim": 96}}),
        ("mae", {"size": "base", "model_args": {"depth": 1, "embed_dim": 192}}),
        ("siglip2", {"size": "base", "model_args": {"depth": 1, "embed_dim": 192}}),
    ],
    ids=str,
)
def test_the_papers_encoders_keep_the_contract(name, options):
    check_encoder(name, image_size=(32, 48), **options)


@pytest.mark.parametrize(
    ("build", "millions", "patch"),
    [
        (lambda: DINOv2Encoder(pretrained=False), 304.37, 14),
        (lambda: DINOv2Encoder(registers=True, pretrained=False), 304.37, 14),
        (lambda: DINOv2Encoder("giant", pretrained=False), 1136.5, 14),
        (lambda: MAEEncoder(pretrained=False), 303.3, 16),
        (lambda: SigLIP2Encoder(pretrained=False), 303.4, 16),
    ],
    ids=["dinov2", "dinov2-reg4", "dinov2-giant", "mae", "siglip2"],
)
def test_the_papers_encoders_have_the_papers_parameter_counts(build, millions, patch):
    with torch.device("meta"):
        encoder = build()
        features = encoder(torch.empty(1, 3, 64, 96))
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert encoder.stride == patch
    assert features.shape == (1, encoder.out_dim, 4, 6)


def test_dinov2_keeps_the_position_grid_it_was_trained_on():
    with torch.device("meta"):
        assert DINOv2Encoder(pretrained=False).backbone.pos_embed.shape == (1, 1 + 37 * 37, 1024)
        assert DINOv2Encoder(pretrained=False, image_size=224).backbone.pos_embed.shape == (1, 1 + 16 * 16, 1024)


def test_the_last_layer_is_the_second_of_the_last_blocks_mlp():
    with torch.device("meta"):
        for encoder in (TimmEncoder(TINY, pretrained=False), DINOv2Encoder("giant", pretrained=False)):
            assert encoder.last_layer is encoder.backbone.blocks[-1].mlp.fc2.weight
        cnn = TimmEncoder("resnet18", pretrained=False)
        assert cnn.last_layer is cnn.backbone.layer3[-1].conv2.weight


def test_features_are_the_blocks_output_through_the_last_norm():
    encoder = TimmEncoder(TINY, pretrained=False, out_index=2).eval()
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        vit = encoder.backbone
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(encoder.normalise(images))))
        expected = vit.norm(vit.blocks(tokens))[:, 1:].mT.reshape(1, 192, 2, 3)
        torch.testing.assert_close(encoder(images), expected)
    assert len(vit.blocks) == 3


def test_a_cnn_takes_the_deepest_stride_that_is_not_above_the_factor():
    with torch.device("meta"):
        strides = [TimmEncoder("resnet18", pretrained=False, downsample_factor=f).stride for f in (4, 8, 16, 64)]
        chosen = TimmEncoder("resnet18", pretrained=False, downsample_factor=16, stride=8)
    assert strides == [4, 8, 16, 32]
    assert chosen.stride == 8
    assert not len(chosen.backbone.layer3)


def test_a_blank_image_passes_once_through_models_that_are_alike(monkeypatch):
    looked = []
    monkeypatch.setattr(module, "_SEEN", {})
    monkeypatch.setattr(module, "meta_twin", lambda encoder: looked.append(encoder) or meta_twin(encoder))
    short = {"depth": 2}
    others = [
        dict(out_index=0),
        dict(final_norm=False),
        dict(image_size=32),
        dict(model_args={**short, "num_heads": 1}),
    ]
    others += [dict(model_args={**short, "dynamic_img_size": False})]
    for number, options in enumerate([{}, *others], start=1):
        for device in ("meta", "cpu"):
            with torch.device(device):
                encoder = TimmEncoder(TINY, pretrained=False, **{"model_args": short, **options})
        assert len(looked) == number, options
        assert encoder.out_dim == 192


def test_dropout_and_stochastic_depth_are_off_unless_asked_for():
    images = torch.rand(2, 3, 32, 32)
    plain = TimmEncoder("efficientnet_b0", pretrained=False).train()
    assert torch.equal(plain(images), plain(images))
    wild = TimmEncoder(TINY, pretrained=False, model_args={"proj_drop_rate": 0.5}).train()
    assert not torch.equal(wild(images), wild(images))


@pytest.mark.parametrize(
    ("model_name", "options", "message"),
    [
        ("vit_tinny_patch16_224", {}, "did you mean 'vit_tiny_patch16_224'"),
        ("vit_small_patch14_dinov2.lvd142", {}, "did you mean 'vit_small_patch14_dinov2.lvd142m'"),
        (TINY, {"stride": 8}, "no features of stride 8; allowed: 16"),
        ("resnet18", {"stride": 7}, "allowed: 2, 4, 8, 16, 32"),
        (TINY, {"out_index": 12}, "out_index=12; allowed: 0 to 11"),
        ("resnet18", {"out_index": 1, "stride": 8}, "stride 4, not stride=8"),
        (TINY, {"model_args": {"dept": 3}}, "dept"),
        (TINY, {"model_args": {"num_heads": True}}, "model_args: num_heads=True is bool; it must be int"),
        ("resnet18", {"model_args": {"drop_path_rate": True}}, "drop_path_rate=True of model_args"),
        (TINY, {"model_args": {"drop_rate": 1.0}}, "drop_rate=1.0 of model_args; it must be 0 to 0.999"),
        (TINY, {"model_args": {"init_values": -1}}, "init_values=-1 of model_args; it must be 0 to 65536"),
        (TINY, {"model_args": {"checkpoint_path": "x.pth"}}, "checkpoint_path stands in model_args, which are"),
        (TINY, {"model_args": {"pretrained": True}}, "pretrained stands in model_args, which are"),
    ],
)
def test_what_timm_does_not_have_is_refused_with_what_it_has(model_name, options, message):
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        TimmEncoder(model_name, pretrained=False, **options)


def test_an_unknown_size_of_the_papers_encoders_is_refused_with_the_sizes():
    with pytest.raises(ConfigError, match=r"did you mean 'large'.*known: small, base, large, giant"):
        DINOv2Encoder("larg", pretrained=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dinov2", {"stride": 7}, "no keyword named 'stride'.*known: size, registers, pretrained, image_size"),
        ("mae", {"registers": True}, "no keyword named 'registers'"),
        ("siglip2", {"image_size": "224"}, "image_size='224' is str; it must be int of at least 1 or"),
    ],
)
def test_the_papers_encoders_hold_a_config_against_timms_keywords_and_their_own(name, options, message):
    with pytest.raises(ConfigError, match=message):
        ENCODERS.build({"type": name, "pretrained": False, **options})


def test_a_backbone_of_fixed_size_says_so():
    with torch.device("meta"):
        encoder = TimmEncoder("beit_base_patch16_224", pretrained=False, model_args={"depth": 1})
        with pytest.raises(ConfigError, match="image_size="):
            encoder(torch.empty(1, 3, 64, 96))
        fitted = TimmEncoder("beit_base_patch16_224", pretrained=False, image_size=(64, 96), model_args={"depth": 1})
        assert fitted(torch.empty(1, 3, 64, 96)).shape == (1, 768, 4, 6)


def test_checkpointing_keeps_fewer_activations():
    encoder, images = TimmEncoder(TINY, pretrained=False, out_index=2), torch.rand(1, 3, 64, 96)
    kept = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        numbers: list[int] = []
        hook = lambda x, numbers=numbers: (numbers.append(x.numel()), x)[1]  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(hook, lambda x: x):
            encoder(images)
        kept.append(sum(numbers))
    assert kept[1] < kept[0] / 2
