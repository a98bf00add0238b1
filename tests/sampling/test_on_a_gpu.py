"""What is drawn, and what it is drawn with, meet on one device; shown with tensors that have a device and no memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import aligntok
from aligntok.diffusion import sampling
from aligntok.latent_diffusion import LatentDiffusion, LatentStatistics
from aligntok.sampling import pipeline
from aligntok.sampling.pipeline import SamplePipeline
from aligntok.sampling.settings import SampleRequest

CNN = dict(type="ldm_cnn", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=12)
VIT = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False)
ALIGNED = dict(VIT, model_args=dict(depth=1, embed_dim=48, num_heads=3), downsample_factor=2)
DIT = dict(type="lightning_dit", hidden_size=32, depth=1, num_heads=2, patch_size=2, input_size=(4, 6), num_classes=3)


def made(encoder, adapter=None):
    tokenizer = aligntok.Tokenizer(encoder, adapter, CNN, 4, 2)
    statistics = LatentStatistics((0.1,) * 4, (1.5, 0.5, 1.0, 2.0))
    generator = dict(DIT, in_channels=4)
    return LatentDiffusion(generator, tokenizer, statistics, (4, 4, 6), ("a", "b", "c"), {}).eval()


def change(module, change):
    """Put another tensor in the place of each that a module has."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            kept.update({name: each if each is None else change(each) for name, each in kept.items()})
    return module


@pytest.fixture
def mode(monkeypatch):
    """Tensors of a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(nn.Module, "to", lambda module, where: change(module, lambda each: each.to(where)))
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(("encoder", "adapter"), [(CNN, None), (ALIGNED, dict(type="mlp"))])
def test_samples_are_drawn_and_decoded_where_the_generator_is_and_the_encoder_is_not(
    mode, encoder, adapter, scale, monkeypatch
):
    model = change(made(encoder, adapter), mode.from_tensor)
    monkeypatch.setattr(pipeline, "load_latent_diffusion", lambda *given, **how: model)
    drawing = SamplePipeline(SampleRequest(run="x", sampling=dict(cfg_scale=scale, steps=2)))
    drawing.weak, drawing.device = change(made(encoder, adapter), mode.from_tensor).generator, torch.device("cuda")
    times = sampling.times(drawing.sampling, drawing.latent_size, model.generator)
    monkeypatch.setattr(sampling, "times", lambda *given: times)  # numbers, which the CPU holds
    with mode, torch.no_grad():
        drawing.to_device()
        numbers = ([0, 2], [0, 1], drawing.sampling, drawing.latent_size)
        latents = drawing.model.sample_latents(*numbers, drawing.weak, None)
        pixels, finite = drawing._decode(latents)
    assert {each.device.type for each in (latents, pixels, finite)} == {"cuda"}
    assert pixels.shape == (2, 8, 12, 3)
    assert {each.device.type for each in drawing.model.tokenizer.encoder.parameters()} == {"cpu"}
