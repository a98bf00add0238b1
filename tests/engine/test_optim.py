"""The optimisers of a stage: settings that change on the way, and a learning rate that a schedule has moved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.optim import CosineAnnealingLR, LinearLR, MultiStepLR
from torch import nn

from aligntok.engine.optim import PartOptimizersConstructor, _total_norm, check_optimizer, side_of
from aligntok.errors import CheckpointError, ConfigError


class Parts(nn.Module):
    """What the constructor asks of a model."""

    def __init__(self, precision="fp32", **parts):
        super().__init__()
        self.precision = precision
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


def test_a_second_resume_with_yet_another_rate_keeps_the_schedules_factor():
    """After 4 of 10 warm-up steps from 0.1, the factor is 0.5, of whichever rate the config has."""
    model, optim = build(lr=1e-2)
    schedule = LinearLR(optim["autoencoder"], by_epoch=False, start_factor=0.1, end=10)
    for _ in range(4):
        step(model, optim)
        schedule.step()
    assert rate(optim) == pytest.approx(0.5 * 1e-2)
    for lr in (5e-3, 2e-3, 2e-3, 1e-2):
        state = optim.state_dict()
        _, optim = build(lr=lr)
        optim.load_state_dict(state)
        assert rate(optim) == pytest.approx(0.5 * lr)
        assert optim["autoencoder"].optimizer.param_groups[0]["initial_lr"] == lr


@settings(max_examples=15)
@given(
    kinds=st.lists(st.sampled_from(["linear", "cosine", "steps"]), min_size=1, max_size=2),
    numbers=st.tuples(st.integers(0, 4), st.integers(2, 9), st.floats(0.1, 1)),
    stop=st.integers(0, 12),
    rates=st.tuples(st.sampled_from([1e-2, 3e-3]), st.sampled_from([1e-2, 3e-3])),
)
def test_any_schedule_goes_on_from_any_step_at_any_rate(kinds, numbers, stop, rates):
    begin, length, factor = numbers

    def made(optim):
        options = dict(by_epoch=False, begin=begin, end=begin + length)
        each = dict(
            linear=lambda: LinearLR(optim["autoencoder"], start_factor=factor, **options),
            cosine=lambda: CosineAnnealingLR(optim["autoencoder"], T_max=length, eta_min_ratio=factor / 2, **options),
            steps=lambda: MultiStepLR(optim["autoencoder"], milestones=[begin + 1, begin + 4], by_epoch=False),
        )
        return [each[kind]() for kind in kinds]

    def walked(optim, schedules, steps):
        for _ in range(steps):
            optim["autoencoder"].step()
            for schedule in schedules:
                schedule.step()
        return rate(optim)

    _, whole = build(lr=rates[1])
    expected = walked(whole, made(whole), 14)
    _, before = build(lr=rates[0])
    schedules = made(before)
    walked(before, schedules, stop)
    _, optim = build(lr=rates[1])
    resumed = made(optim)
    optim.load_state_dict(before.state_dict())
    for schedule, old in zip(resumed, schedules, strict=True):  # as the runner does
        base_values = schedule.base_values
        schedule.load_state_dict(old.state_dict())
        schedule.base_values = base_values
    assert walked(optim, resumed, 14 - stop) == pytest.approx(expected, rel=1e-6)


def moved(clip, *gradients):
    """How far each part moves in a step of SGD with rate 1, whose gradient has this norm: by norm of the move."""
    parts = {name: nn.Linear(4, 1, bias=False) for name in ("encoder", "decoder", "discriminator")}
    sgd = dict(type="SGD", lr=1.0)
    config = dict(autoencoder=sgd, discriminator=sgd, clip_grad_norm=clip, max_skipped=3, spike_factor=None)
    model = Parts(**parts)
    for part in parts.values():
        nn.init.zeros_(part.weight)
    optim = PartOptimizersConstructor(config)(model)
    for part, norm in zip(parts.values(), gradients, strict=True):
        part.weight.grad = torch.full((1, 4), norm / 2)
    logs = optim.step_parts(parts, [])
    assert [float(logs[f"grad_norm/{name}"]) for name in parts] == pytest.approx(gradients)  # before clipping
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    return [float(part.weight.detach().norm()) for part in parts.values()]


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (None, [3.0, 4.0, 12.0]),
        (100.0, [3.0, 4.0, 12.0]),  # small gradients stay as they are
        (5.1, [3.0, 4.0, 5.1]),
        (2.5, [1.5, 2.0, 2.5]),  # encoder and decoder are one side, whose norm is 5
    ],
)
def test_clipping_shrinks_a_side_to_its_bound_and_enlarges_nothing(clip, expected):
    assert moved(clip, 3.0, 4.0, 12.0) == pytest.approx(expected, rel=1e-5)
    # The divisor is a millionth larger than the norm.
    assert moved(1e-6, 1e-6, 0.0, 3e-6) == pytest.approx([0.5e-6, 0.0, 0.75e-6], rel=1e-5)


def test_a_step_clears_the_gradients_of_sides_that_it_leaves_out_too():
    model, optim = build()
    for value in (1.0, float("nan")):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optim.step_parts(model.trained_parts(), [torch.tensor(value)])
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert optim.guard.skipped == 1


def parts_of(precision):
    return Parts(precision, decoder=nn.Linear(3, 2), discriminator=nn.Linear(2, 1))


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32"), ("fp16", "fp16")])
def test_a_run_goes_on_in_another_precision(before, after):
    _, optim = build(model=parts_of(before))
    optim.loss_scale(torch.device("cpu"))
    if before == "fp16":
        optim.scaler.update(512.0)
    other_model, other = build(model=parts_of(after))
    other.load_state_dict(optim.state_dict())
    expected = {"fp32": 1.0, "fp16": 512.0 if before == "fp16" else 2.0**16}[after]
    assert float(other.loss_scale(torch.device("cpu"))) == expected
    for parameter in other_model.parameters():
        parameter.grad = torch.full_like(parameter, expected)
    logs = other.step_parts(other_model.trained_parts(), [])
    assert float(logs["grad_norm/decoder"]) == pytest.approx(8**0.5)  # of eight ones, the scale divided out
    assert ("loss_scale" in logs) is (after == "fp16")


def test_optimisers_of_another_model_are_one_clear_error():
    model, optim = build()
    step(model, optim)
    _, other = build(model=Parts(decoder=nn.Linear(3, 2, bias=False), discriminator=nn.Linear(2, 1)))
    with pytest.raises(CheckpointError, match="optimiser of the autoencoder does not fit the config's"):
        other.load_state_dict(optim.state_dict())
    _, other = build(model=Parts(decoder=nn.Linear(3, 2)))
    with pytest.raises(CheckpointError, match="has optimisers of autoencoder, discriminator, the config of auto"):
        other.load_state_dict(optim.state_dict())


HIGHEST = [
    ("Adam", "lr", 100.0),
    ("AdamW", "weight_decay", 10.0),
    ("Adam", "eps", 1.0),
    ("SGD", "momentum", 1.0),
    ("SGD", "dampening", 1.0),
    ("RMSprop", "alpha", 1.0),
    ("Adadelta", "rho", 1.0),
    ("ASGD", "t0", 1e9),
]


@pytest.mark.parametrize(("kind", "keyword", "most"), HIGHEST, ids=[keyword for _, keyword, _ in HIGHEST])
def test_a_keyword_of_an_optimiser_has_a_highest_value_and_none_beyond(kind, keyword, most):
    check_optimizer({"type": kind, keyword: most}, "optimizer")
    for beyond in (1.01 * most, -1.01 * most):
        with pytest.raises(ConfigError, match=rf"optimizer: optimiser '{kind}': {keyword}=.*; it must be at most "):
            check_optimizer({"type": kind, keyword: beyond}, "optimizer")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (dict(type="Adan"), "did you mean 'Adam'"),
        (dict(type="Linear"), "Linear"),
        (dict(type="Adam", params=[]), "params are what the stage trains; leave them out"),
        (dict(type="Adam", learning_rate=1), "learning_rate"),
        (dict(type="Adam", betas=(0.5, 1.5)), "cannot take a step"),
        (dict(type="Adam", capturable=True), "cannot take a step"),  # on a CPU
        (dict(type="SGD", maximize=True), "does not descend"),
    ],
)
def test_what_is_no_optimiser_or_does_not_descend_is_refused(config, said):
    check_optimizer(dict(type="Adam"), "optimizer")
    with pytest.raises(ConfigError, match=said):
        check_optimizer(config, "optimizer")


def test_what_a_gpu_captures_is_not_tried_without_one(monkeypatch):
    monkeypatch.setattr("aligntok.engine.optim.device", lambda: torch.device("cuda"))
    check_optimizer(dict(type="Adam", capturable=True), "optimizer")
    with pytest.raises(ConfigError, match="does not descend"):
        check_optimizer(dict(type="Adam", maximize=True), "optimizer")


@pytest.mark.parametrize(
    ("options", "fused"),
    [({}, True), (dict(foreach=True), None), (dict(fused=False), False), (dict(kind="SGD"), True)],
)
def test_optimisers_are_fused_unless_the_config_says_otherwise(options, fused):
    _, optim = build(**options)
    assert optim["autoencoder"].optimizer.param_groups[0]["fused"] is fused


def test_an_optimiser_that_cannot_be_fused_is_not():
    parts = Parts(decoder=nn.Linear(3, 2))
    config = dict(autoencoder=dict(type="ASGD", lr=0.1), clip_grad_norm=None, max_skipped=3, spike_factor=None)
    assert list(PartOptimizersConstructor(config)(parts).optim_wrappers) == ["autoencoder"]


def test_discriminator_and_generator_have_optimisers_of_their_own():
    parts = ("encoder", "adapter", "decoder", "loss_vf", "discriminator", "generator")
    assert [side_of(part) for part in parts] == ["autoencoder"] * 4 + ["discriminator", "generator"]


def test_a_loss_that_is_not_finite_in_one_process_leaves_the_step_out_in_both(as_processes):
    models = [build() for _ in range(2)]
    before = models[0][0].state_dict()["parts.decoder.weight"].clone()

    def step_both(rank, *losses):
        model, optim = models[rank]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        return float(optim.step_parts(model.trained_parts(), [torch.tensor(losses[rank])])["skipped_steps"])

    assert as_processes(lambda rank: step_both(rank, 1.0, float("inf"))) == [1, 1]
    assert as_processes(lambda rank: step_both(rank, float("nan"), 1.0)) == [2, 2]
    assert all(torch.equal(model.state_dict()["parts.decoder.weight"], before) for model, _ in models)
    assert as_processes(lambda rank: step_both(rank, 1.0, 2.0)) == [2, 2]
    assert not any(torch.equal(model.state_dict()["parts.decoder.weight"], before) for model, _ in models)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_without_any_gradient_is_one_that_changes_nothing(precision):
    model, optim = build(model=parts_of(precision))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        optim.loss_scale(torch.device("cpu"))
        logs = optim.step_parts(model.trained_parts(), [torch.tensor(1.0)])
        assert (float(logs["grad_norm/decoder"]), float(logs["skipped_steps"])) == (0.0, 0.0)
        assert float(logs.get("loss_scale", 1.0)) == (2.0**16 if precision == "fp16" else 1.0)
    assert optim.took_step
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.parts["decoder"].weight.grad = torch.ones(2, 3)  # of one side, and of one part of it
    optim.step_parts(model.trained_parts(), [])
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"parts.decoder.weight"}


def test_a_part_without_parameters_has_no_norm_and_takes_part_in_nothing():
    model = Parts(adapter=nn.Identity(), decoder=nn.Linear(3, 2))
    config = dict(autoencoder=dict(type="SGD", lr=1.0), clip_grad_norm=1.0, max_skipped=3, spike_factor=None)
    optim = PartOptimizersConstructor(config)(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    logs = optim.step_parts(model.trained_parts(), [])
    assert set(logs) == {"grad_norm/decoder", "skipped_steps"}


def test_what_a_step_makes_anew_lies_where_its_parts_do():
    """The meta device refuses, as a GPU would, to meet what was left on the CPU."""
    _, optim = build()
    assert optim.loss_scale(torch.device("meta")).is_meta
    assert _total_norm([], nn.Linear(3, 2, device="meta")).is_meta
