"""What processes exchange: in one, and in two threads that take themselves for processes."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch import nn

from aligntok import distributed
from aligntok.distributed import (
    agree,
    any_process,
    barrier,
    broadcast,
    gather,
    is_first,
    is_first_of_node,
    mean_over_processes,
    must_agree,
    start_processes,
    total,
    world,
)
from aligntok.distributed.parallel import GradientReduction, SelfReducing
from aligntok.engine.hooks import average_scalars
from aligntok.errors import DataError


def test_one_process_needs_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert start_processes() == "none"
    assert world() == (0, 1)
    assert is_first()
    barrier()
    x = torch.ones(3)
    assert mean_over_processes(x) is x
    assert x.tolist() == [1, 1, 1]


def test_one_process_keeps_its_gradients():
    layer = nn.Linear(2, 2)
    layer.weight.grad = gradient = torch.ones(2, 2)
    reduction = GradientReduction()
    reduction.start(layer.parameters())
    reduction.finish()
    assert layer.weight.grad is gradient
    assert layer.bias.grad is None


def test_the_wrapper_hands_steps_through_and_keeps_the_names():
    class Model(nn.Linear):
        def train_step(self, data, optim_wrapper):
            return data, optim_wrapper

        def val_step(self, data):
            return data

    model = Model(2, 2)
    wrapped = SelfReducing(model)
    assert wrapped.train_step(1, optim_wrapper=2) == (1, 2)
    assert wrapped.val_step(3) == 3
    assert wrapped.module is model


def test_scalars_become_numbers():
    found = average_scalars({"loss/l1": torch.tensor(2.5, requires_grad=True), "skipped_steps": torch.zeros(())})
    assert found == pytest.approx({"loss/l1": 2.5, "skipped_steps": 0})


def test_what_two_exchange_is_what_both_have(as_processes):
    def exchanged(rank):
        assert world() == (rank, 2)
        assert is_first() is (rank == 0)
        numbers = torch.tensor([1.0, 3.0]) * (rank + 1)
        summed = total(numbers)
        assert numbers.tolist() == [1.0 + rank, 3.0 + 3 * rank]  # as it was
        assert mean_over_processes(numbers) is numbers
        rows = [[part.tolist() for part in gather(torch.arange(2 * own).reshape(-1, 2))] for own in (rank, 2 - rank, 0)]
        weight = nn.Parameter(torch.full((2,), 5.0 + rank))
        broadcast([weight, numbers])
        barrier()
        flags = [any_process(flag) for flag in (rank == 0, rank == 1, True, False)]
        alike = [agree(number) for number in (3, -3, 0, rank, -rank)]
        return summed.tolist(), numbers.tolist(), rows, weight.tolist(), flags, alike

    rows = [[[], [[0, 1]]], [[[0, 1], [2, 3]], [[0, 1]]], [[], []]]
    flags = [True, True, True, False], [True, True, True, False, False]
    assert as_processes(exchanged) == [([3.0, 9.0], [1.5, 4.5], rows, [5.0, 5.0], *flags)] * 2


def test_settings_agree_in_whatever_order_they_are_said_or_the_second_is_told(as_processes):
    as_processes(lambda rank: must_agree({"a": 1, "b": 2} if rank else {"b": 2, "a": 1}, "another seed"))

    def differ(rank):
        try:
            must_agree({"seed": rank}, "another seed")
        except DataError as error:
            return str(error)

    first, second = as_processes(differ)
    assert first is None
    assert second.startswith("this process sees another seed, or other options than the first; give every machine")


def test_one_process_of_each_machine_looks_at_files(as_processes, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert is_first_of_node()  # alone
    assert as_processes(lambda rank: is_first_of_node()) == [False, False]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert as_processes(lambda rank: is_first_of_node()) == [True, True]
    monkeypatch.delenv("LOCAL_RANK")
    assert as_processes(lambda rank: is_first_of_node()) == [True, True]


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_half_of_torchruns_environment_is_none(monkeypatch, name):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv(name)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("joined a group"))
    assert start_processes() == "none"


@pytest.mark.parametrize(
    ("gpus", "local", "backend", "device"),
    [(True, "2", "cpu:gloo,cuda:nccl", [2]), (True, None, "cpu:gloo,cuda:nccl", [0]), (False, "2", "gloo", [])],
)
@pytest.mark.parametrize("agent", [True, False])
def test_a_process_takes_its_own_gpu_and_meets_the_others_of_its_life(monkeypatch, gpus, local, backend, device, agent):
    environment = dict(RANK="5", WORLD_SIZE="8", LOCAL_RANK=local, MASTER_ADDR="there", MASTER_PORT="29500")
    environment |= dict(TORCHELASTIC_RUN_ID="run" if agent else None, TORCHELASTIC_RESTART_COUNT="3" if agent else None)
    environment["TORCHELASTIC_USE_AGENT_STORE"] = str(agent)
    for name, value in environment.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    joined, stores, chosen, ends = [], [], [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *given, **named: joined.append((given, named)))
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *given, **named: stores.append((given, named)) or "store")
    monkeypatch.setattr(torch.distributed, "PrefixStore", lambda prefix, store: (prefix, store))
    monkeypatch.setattr(distributed.atexit, "register", ends.append)
    monkeypatch.setattr(distributed.atexit, "unregister", ends.remove)
    assert start_processes() == "pytorch"
    assert chosen == device
    meeting = dict(store=("aligntok/meeting/run/3", "store"), rank=5, world_size=8) if agent else {}
    assert joined == [((backend,), meeting)]
    named = dict(is_master=False, timeout=timedelta(seconds=30))
    assert stores == ([(("there", 29500), named)] if agent else [])
    assert distributed.life() == ("run/3" if agent else "/0")
    assert len(ends) == 1
    distributed.abandon_process_group()
    assert ends == []


def test_gradients_start_in_the_order_that_was_said_whichever_came_first(as_processes, monkeypatch):
    """Means of what two processes have; zero where one has none, none where both have none, and no watch stays."""
    started = {0: [], 1: []}
    plain = GradientReduction.start

    def start(self, group):
        started[world()[0]].append([*group])
        plain(self, started[world()[0]][-1])

    monkeypatch.setattr(GradientReduction, "start", start)

    def step(rank):
        layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        layers[3].weight.requires_grad_(False)
        for layer in layers:
            nn.init.constant_(layer.weight, 0.5)
        x, reduction = torch.full((1, 3), 1.0 + rank), GradientReduction()
        reduction.start_when_ready([[*layers[i].parameters()] for i in (1, 0, 3, 2)])
        used = [layers[0], layers[1], layers[3]] if rank else [layers[1], layers[3], layers[0]]
        sum(layer(x).sum() for layer in used).backward()
        before = len(started[rank])
        reduction.finish()
        assert [group[0] is layers[i].weight for group, i in zip(started[rank], (1, 0, 3, 2), strict=True)] == [
            True
        ] * 4
        assert all(not p._post_accumulate_grad_hooks for p in layers.parameters())
        layers[2].bias.grad = torch.full((3,), 4.0) if rank else None
        reduction.start(layers[2].parameters())
        reduction.finish()
        gradients = [None if p.grad is None else p.grad.unique().tolist() for p in layers.parameters()]
        return before, gradients

    expected = [[1.5], [1.0], [1.5], [1.0], None, [2.0], None, [1.0]]
    assert as_processes(step) == [(3, expected)] * 2


def test_what_is_not_trained_is_not_exchanged(as_processes, monkeypatch):
    """A flat tensor a group: its gradients, and a number for each that says whether it is there."""
    sizes, exchange = [], torch.distributed.all_reduce
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda flat, **named: sizes.append(flat.numel()) or exchange(flat, **named)
    )

    def step(rank):
        layer, frozen = nn.Linear(3, 2), nn.Linear(50, 50).requires_grad_(False)
        layer.weight.requires_grad_(False)
        layer.bias.grad = torch.full((2,), 1.0 + rank)
        reduction = GradientReduction()
        for part in (layer, frozen, nn.Identity()):
            reduction.start(part.parameters())
        reduction.finish()
        return layer.bias.grad.tolist()

    assert as_processes(step) == [[1.5, 1.5]] * 2
    assert sizes == [3, 3]


def test_a_wrapped_model_has_the_first_ones_weights_and_buffers(as_processes):
    models = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    models[1][1].running_mean.fill_(7)
    before = {name: tensor.clone() for name, tensor in models[0].state_dict().items()}
    as_processes(lambda rank: SelfReducing(models[rank]))
    for model in models:
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
