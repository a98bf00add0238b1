"""Weights that share a tensor: trained, averaged, frozen, exported and loaded as one, whatever names it has."""

from __future__ import annotations

import sys

import pytest
import torch

import aligntok
from aligntok.cli import train
from aligntok.encoders.timm import TimmEncoder
from aligntok.engine.checkpoints import list_checkpoints, read_checkpoint, read_frozen, read_parts, write_frozen

PARTS = """
import torch.nn as nn, torch.nn.functional as F
from aligntok.decoders import Decoder
from aligntok.encoders import Encoder
from aligntok.generators import Generator

def tied(width):
    a, b = (nn.Conv2d(width, width, 3, padding=1) for _ in "ab")
    b.weight = a.weight
    return a, b

class TiedDecoder(Decoder):
    def __init__(self, latent_dim=4, width=16):
        super().__init__(latent_dim=latent_dim, upsample_factor=8)
        self.first = nn.Conv2d(latent_dim, width, 1)
        self.a, self.b = tied(width)
        self.norm = nn.BatchNorm2d(width)
        self.out = nn.Conv2d(width, 3 * 64, 1)
    def forward(self, z):
        x = self.first(z)
        return F.pixel_shuffle(self.out(self.norm(x + self.b(F.silu(self.a(x))))), 8)
    @property
    def last_layer(self): return self.out.weight
    def set_grad_checkpointing(self, enable=True): pass

class TiedEncoder(Encoder):
    def __init__(self, width=16, pretrained=False):
        super().__init__(downsample_factor=8, stride=8, out_dim=width)
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.a, self.b = tied(width)
    def backbone_features(self, x):
        x = self.stem(x)
        return x + self.b(F.silu(self.a(x)))
    @property
    def last_layer(self): return self.b.weight

class TiedGenerator(Generator):
    def __init__(self, in_channels=4, num_classes=3, width=16, class_dropout_prob=0.1):
        super().__init__(in_channels=in_channels, num_classes=num_classes, class_dropout_prob=class_dropout_prob)
        self.emb, self.first = nn.Embedding(num_classes + 1, width), nn.Conv2d(in_channels, width, 1)
        self.a, self.b = tied(width)
        self.out = nn.Conv2d(width, in_channels, 1)
    def forward(self, x, t, y):
        x = self.first(x) + self.emb(y)[..., None, None] + t[:, None, None, None].to(x)
        return self.out(x + self.b(F.silu(self.a(x))))
    def set_grad_checkpointing(self, enable=True): pass
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A module with a decoder, an encoder and a generator, in each of which two layers share a weight."""
    (tmp_path / "tied_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("tied_parts")
    del sys.modules["tied_parts"]


def test_an_export_of_averages_has_them_everywhere_and_frozen_parts_stay(parts, tiny, write_config, tmp_path):
    names = {"decoder": "tied_parts.TiedDecoder", "encoder": "tied_parts.TiedEncoder"}
    model = {**tiny["model"], **{part: dict(type=name) for part, name in names.items()}}
    stages = [dict(name="align", trainable=["adapter", "decoder"], steps=3)]
    config = write_config(model=model, losses=dict(l1=dict(type="l1")), discriminator=None, stages=stages)
    run = tmp_path / "run"
    assert train([config, "--work-dir", str(run), "--cfg-options", "optimizer.lr=0.01", "ema.snapshot_every=1"]) == 0
    stage = run / "1_align"
    averages = read_checkpoint(list_checkpoints(stage)[-1][1])["ema"]["averages"]["0.05"]["decoder"]
    components = {name: getattr(parts, name.split(".")[1]) for name in names.values()}
    for tokenizer in (
        aligntok.load_tokenizer(run, components=components),
        aligntok.load_tokenizer(run / "tokenizer", components=components),
    ):
        decoder, encoder = tokenizer.decoder, tokenizer.encoder
        assert decoder.a.weight is decoder.b.weight
        assert encoder.a.weight is encoder.b.weight
        own = {name: value for name, value in decoder.state_dict().items() if "num_batches" not in name}
        assert own.keys() == averages.keys()
        assert [name for name, value in own.items() if not torch.equal(value, averages[name])] == []
    raw = read_parts(stage)["decoder"]
    assert not torch.equal(raw["b.weight"], averages["b.weight"])
    assert not torch.equal(raw["norm.running_mean"], averages["norm.running_mean"])
    made = aligntok.load_tokenizer(run, components=components, weights="ema", sigma_rel=0.07, rebuild=True)
    assert torch.equal(made.decoder.b.weight, made.decoder.a.weight)


def test_a_generator_with_tied_weights_is_exported_and_loads(parts, write_generation, tmp_path):
    config, run = (
        write_generation(generator=dict(type="tied_parts.TiedGenerator"), log=dict(pictures=0)),
        tmp_path / "run",
    )
    assert train([config, "--work-dir", str(run)]) == 0
    own = {"tied_parts.TiedGenerator": parts.TiedGenerator}
    exported, trained = (aligntok.load_latent_diffusion(at, components=own) for at in (run / "latent_diffusion", run))
    assert exported.generator.a.weight is exported.generator.b.weight
    expected = trained.generator.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in exported.generator.state_dict().items())


def test_a_model_of_timm_with_shared_weights_can_be_frozen(tmp_path):
    torch.manual_seed(0)
    encoder = TimmEncoder("coat_mini", pretrained=False)
    names = list(encoder.state_dict())
    assert len(names) > len(list(encoder.named_parameters())) + len(list(encoder.named_buffers()))  # some are shared
    write_frozen(tmp_path, {"encoder": encoder}, {})
    found = read_frozen(tmp_path)["encoder"]
    assert sorted(found) == sorted(names)
    assert all(torch.equal(found[name], value) for name, value in encoder.state_dict().items())
