"""A step that is left out leaves nothing behind: neither in weights, nor in what a forward pass writes down."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aligntok.discriminators import GlobalBatchNorm2d
from aligntok.engine.optim import PartOptimizersConstructor
from aligntok.engine.runner import StepBatch
from aligntok.training.stages import TrainedModel


class Replacing(nn.Module):
    """Counts by a new buffer each time, as some do instead of writing in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + x.detach().sum()
        return x


class Model(TrainedModel):
    """Every kind of buffer that a forward pass changes, in parts of every side."""

    def __init__(self):
        super().__init__(SimpleNamespace(precision="fp32"), seed=0)
        norms = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True))
        norms.register_buffer("nothing", None)
        spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
        older = nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))
        parts = {"encoder": norms, "decoder": nn.Sequential(spectral, Replacing(), older)}
        parts["discriminator"] = nn.Sequential(nn.Conv2d(4, 4, 1), GlobalBatchNorm2d(4, momentum=None))
        self.held = nn.ModuleDict(parts)

    def trained_parts(self):
        return dict(self.held)

    def forward(self, *args, **keywords):
        raise NotImplementedError

    def backward(self, batch, place):
        x = batch["images"]
        for part in self.held.values():
            x = part(x)
        (x.square().mean() * place.scale).backward()
        return {"loss/x": x.detach().mean()}


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = Model().train()
    adam = dict(type="Adam", lr=1e-2)
    config = dict(autoencoder=adam, discriminator=adam, clip_grad_norm=None, max_skipped=2, spike_factor=None)
    return model, PartOptimizersConstructor(config)(model)


def step(model, optim, number, *values):
    """A step of one micro-batch a value, all whose images are noise around it."""
    batches = [{"images": torch.randn(2, 3, 4, 4) + value} for value in values]
    return model.train_step(StepBatch(number, batches), optim)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("values", [[float("nan")], [1.0, float("inf")]], ids=["the first micro-batch", "the second"])
def test_every_buffer_is_what_it_was(trained, values):
    model, optim = trained
    step(model, optim, 0, 1.0)
    before = state(model)
    logs = step(model, optim, 1, *values)
    assert float(logs["skipped_steps"]) == 1
    after = state(model)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    step(model, optim, 2, 1.0)
    moved = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    buffers = {name for name, _ in model.named_buffers()} - {"held.encoder.2.num_batches_tracked"}  # torch leaves it 0
    assert moved >= buffers  # a step that is taken writes all of them
    assert all(value.isfinite().all() for value in state(model).values())


def test_the_first_step_goes_back_to_what_the_stage_began_from(trained):
    model, optim = trained
    with torch.no_grad():
        model.held["discriminator"][1].running_mean.fill_(3.0)  # as weights that are loaded after it was built
    step(model, optim, 0, float("nan"))
    assert model.held["discriminator"][1].running_mean.tolist() == [3.0] * 4
