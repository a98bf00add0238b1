"""The optimisers of a stage: settings that change on the way, and a learning rate that a schedule has moved."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch import nn

from aligntok.engine.optim import PartOptimizersConstructor
from aligntok.errors import CheckpointError


class Parts(nn.Module):
    """What the constructor asks of a model."""

    precision = "fp32"

    def __init__(self, **parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def trained_parts(self):
        return dict(self.parts)


def build(lr=1e-2, betas=(0.9, 0.999), kind="Adam", clip=None, model=None, **more):
    torch.manual_seed(0)
    model = model or Parts(decoder=nn.Linear(3, 2), discriminator=nn.Linear(2, 1))
    adam = dict(type=kind, lr=lr, **({"betas": betas} if kind != "SGD" else {}), **more)
    config = dict(autoencoder=adam, discriminator=dict(type="Adam", lr=0.1), clip_grad_norm=clip)
    return model, PartOptimizersConstructor({**config, "max_skipped": 3, "spike_factor": None})(model)


def step(model, optim, times=1):
    for _ in range(times):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optim.step_parts(model.trained_parts(), [])


def rate(optim):
    return optim["autoencoder"].optimizer.param_groups[0]["lr"]


def test_settings_of_the_config_hold_and_moments_of_the_checkpoint():
    model, optim = build()
    step(model, optim, 3)
    _, other = build(lr=5e-3, betas=(0.5, 0.9), weight_decay=0.1)
    other.load_state_dict(optim.state_dict())
    group = other["autoencoder"].optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (5e-3, (0.5, 0.9), 0.1)
    moments = other["autoencoder"].optimizer.state_dict()["state"]
    assert [float(entry["step"]) for entry in moments.values()] == [3.0, 3.0]


def test_the_same_settings_give_the_same_bits():
    runs = []
    for interrupted in (False, True):
        model, optim = build()
        step(model, optim, 2)
        if interrupted:
            state, weights = optim.state_dict(), model.state_dict()
            model, optim = build(lr=1e-2)
            model.load_state_dict(weights)
            optim.load_state_dict(state)
        step(model, optim, 2)
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("kind", [LinearLR, CosineAnnealingLR])
@pytest.mark.parametrize("lr", [1e-2, 2e-3])
def test_a_scheduled_rate_stays_where_the_schedule_moved_it_relative_to_the_configs(kind, lr):
    options = dict(start_factor=0.1, end=10) if kind is LinearLR else dict(T_max=10)
    wanted = []
    for rates in ((lr,), (1e-2, lr)):  # the config's rate from the beginning, or after an interruption
        model, optim = build(lr=rates[0])
        schedule = kind(optim["autoencoder"], by_epoch=False, **options)
        for _ in range(4):
            step(model, optim)
            schedule.step()
        if len(rates) > 1:
            saved, state = optim.state_dict(), schedule.state_dict()
            model, optim = build(lr=rates[1])
            schedule = kind(optim["autoencoder"], by_epoch=False, **options)
            optim.load_state_dict(saved)
            base_values = schedule.base_values
            schedule.load_state_dict(state)
            schedule.base_values = base_values
        for _ in range(3):
            schedule.step()
        wanted.append(rate(optim))
    assert wanted[1] == pytest.approx(wanted[0], rel=1e-9)


def test_optimisers_of_another_model_are_one_clear_error():
    model, optim = build()
    step(model, optim)
    _, other = build(model=Parts(decoder=nn.Linear(3, 2, bias=False), discriminator=nn.Linear(2, 1)))
    with pytest.raises(CheckpointError, match="optimiser of the autoencoder does not fit the config's"):
        other.load_state_dict(optim.state_dict())
    _, other = build(model=Parts(decoder=nn.Linear(3, 2)))
    with pytest.raises(CheckpointError, match="has optimisers of autoencoder, discriminator, the config of auto"):
        other.load_state_dict(optim.state_dict())
