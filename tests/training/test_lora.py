"""LoRA in stage 2: only the updates train, and whoever comes after sees a plain encoder."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import aligntok
from aligntok.cli import train
from aligntok.encoders.open_clip import OpenCLIPEncoder
from aligntok.encoders.timm import TimmEncoder
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint, read_frozen
from aligntok.errors import ConfigError
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.settings import StageSettings
from aligntok.weights.lora import LoRASettings, add_lora, lora_scaling, with_lora, without_lora

LORA = dict(rank=2, alpha=8, dropout=0.0)
FOLDERS = ("1_latent_alignment", "2_perceptual_alignment", "3_decoder_refinement")


@pytest.fixture
def encoder():
    args = dict(depth=2, embed_dim=48, num_heads=3)
    return TimmEncoder("vit_tiny_patch16_224", pretrained=False, model_args=args, downsample_factor=16)


def stirred(module):
    """Give the updates, which begin as zero, some weight."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    return module.eval()


def test_only_the_updates_of_attention_and_mlp_train(encoder):
    plain = copy.deepcopy(encoder)
    add_lora(encoder, ["encoder"], LoRASettings(**LORA))
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    layers = [
        f"backbone.blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert trained == {f"{layer}.lora_{x}.default.weight" for layer in layers for x in "AB"}
    assert encoder.last_layer is encoder.backbone.blocks[1].mlp.fc2.lora_B.default.weight
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder.eval()(images), plain.eval()(images))  # the updates begin as nothing


def test_open_clips_own_towers_are_trained_in_their_mlps(add_towers):
    add_towers({"tiny-vit": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}})
    encoder = OpenCLIPEncoder("tiny-vit", pretrained=False)
    add_lora(encoder, ["encoder"], LoRASettings(**LORA))
    trained = {name.partition(".lora_")[0] for name, p in encoder.named_parameters() if p.requires_grad}
    blocks = [f"backbone.transformer.resblocks.{i}.mlp" for i in (0, 1)]
    assert trained == {f"{block}.{layer}" for block in blocks for layer in ("c_fc", "c_proj")}
    encoder(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


def test_layers_that_share_a_weight_are_refused(encoder):
    blocks = encoder.backbone.blocks
    blocks[1].mlp.fc1.weight = blocks[0].mlp.fc1.weight
    with pytest.raises(ConfigError, match=r"layer 'backbone.blocks.0.mlp.fc1' of TimmEncoder shares its weight"):
        add_lora(encoder, ["encoder"], LoRASettings(**LORA))


def test_merged_weights_are_those_that_peft_merges(encoder):
    names = list(encoder.state_dict())
    plain = copy.deepcopy(encoder)
    add_lora(encoder, ["encoder"], LoRASettings(**LORA))
    stirred(encoder)
    images = torch.rand(2, 3, 32, 32)
    expected = encoder(images)
    state = without_lora(encoder.state_dict(), lora_scaling(LORA))
    assert list(state) == names
    plain.load_state_dict(state)
    torch.testing.assert_close(plain.eval()(images), expected, rtol=0, atol=1e-5)
    for module in encoder.modules():
        if hasattr(module, "merge") and hasattr(module, "base_layer"):
            module.merge()
    torch.testing.assert_close(without_lora(encoder.state_dict()), state, rtol=0, atol=1e-6)


def test_a_plain_state_finds_its_place_under_the_updates(encoder):
    plain = {name: tensor.clone() + 1 for name, tensor in encoder.state_dict().items()}
    add_lora(encoder, ["encoder"], LoRASettings(**LORA))
    encoder.load_state_dict(with_lora(plain, encoder))
    state = without_lora(encoder.state_dict())
    assert all(torch.equal(state[name], plain[name]) for name in plain)
    assert with_lora({"weight": torch.ones(1)}, nn.Linear(1, 1)) == {"weight": torch.ones(1)}


def test_a_loss_cannot_balance_at_a_layer_that_lora_leaves_frozen(tiny):
    options = dict(steps=1, model=tiny["model"], trainable=["encoder", "adapter", "decoder"], teacher="start")
    losses = dict(l1=dict(type="l1"), semantic=tiny["semantic"])
    lora = LoRASettings(**LORA, targets=r".*attn\.(qkv|proj)")
    with pytest.raises(ConfigError, match="last layer is frozen, by lora .* where loss 'semantic' is weighed"):
        AlignmentModel(StageSettings(losses=losses, lora=lora, **options))
    losses["semantic"] = {**tiny["semantic"], "adaptive_weight": None}
    AlignmentModel(StageSettings(losses=losses, lora=lora, **options))


def test_what_cannot_be_is_one_clear_error(encoder):
    with pytest.raises(ConfigError, match="this stage trains only adapter, decoder; set lora=None"):
        add_lora(encoder, ["adapter", "decoder"], LoRASettings(**LORA))
    with pytest.raises(ConfigError, match=r"no linear layer of TimmEncoder matches targets='proj' .* layers: back"):
        add_lora(encoder, ["encoder"], LoRASettings(**LORA, targets="proj"))


def test_three_stages_with_lora_in_the_second_end_in_a_plain_tokenizer(write_config, tiny, tool, tmp_path):
    stages = [{"steps": 4, **stage} for stage in tiny["stages"]]
    stages[1]["lora"] = LORA
    config = write_config(stages=stages)
    run = tmp_path / "run"
    assert train([config, "--work-dir", str(run)]) == 0
    content = read_checkpoint(list_checkpoints(run / FOLDERS[1])[-1][1])
    trained = content["parts"]["encoder"]
    assert trained
    assert all("lora_" in name for name in trained)  # the rest does not change, and is written once
    frozen = read_frozen(run / FOLDERS[1])
    assert any(name.endswith("base_layer.weight") for name in frozen["encoder"])
    assert not any("lora" in name for name in frozen["teacher_encoder"])
    started = read_frozen(run / FOLDERS[2])["encoder"]
    average = {**frozen["encoder"], **trained, **content["ema"]["averages"]["0.05"]["encoder"]}
    expected = without_lora(average, lora_scaling(LORA))
    assert all(torch.equal(started[name], expected[name]) for name in expected)
    base = without_lora(frozen["encoder"])
    assert not torch.equal(started["backbone.blocks.1.mlp.fc2.weight"], base["backbone.blocks.1.mlp.fc2.weight"])
    tokenizers = [aligntok.load_tokenizer(folder) for folder in (run / "tokenizer", run / FOLDERS[1])]
    for tokenizer in tokenizers:
        assert not any("lora" in name for name in tokenizer.state_dict())
        assert torch.equal(
            tokenizer.encoder.backbone.blocks[1].mlp.fc2.weight, started["backbone.blocks.1.mlp.fc2.weight"]
        )


def test_a_stage_with_lora_goes_on_bit_for_bit(write_config, tiny, tool, tmp_path):
    """Dropout included: what is drawn follows from the step."""
    stages = [{"steps": 2, **stage} for stage in tiny["stages"][:2]]
    stages[1]["lora"] = {**LORA, "dropout": 0.3}
    config = write_config(stages=stages, checkpoint=dict(every=1))
    for name, steps in (("whole", [4]), ("parts", [1, 3, 4])):
        for number in steps:
            assert train([config, "--work-dir", str(tmp_path / name), "--cfg-options", f"stages.1.steps={number}"]) == 0
    assert tool.same(*(tool.newest(tmp_path / name / FOLDERS[1]) for name in ("whole", "parts")))
