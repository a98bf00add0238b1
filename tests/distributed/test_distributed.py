"""What processes exchange: in one, and in two threads that take themselves for processes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
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
from aligntok.engine.hooks import average_scalars
from aligntok.errors import DataError, ProcessError


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
    [
        (8, "2", "cpu:gloo,cuda:nccl", [2]),
        (8, None, "cpu:gloo,cuda:nccl", [0]),
        (1, "2", "cpu:gloo,cuda:nccl", [0]),  # a scheduler shows each process its own alone
        (0, "2", "gloo", []),
    ],
)
@pytest.mark.parametrize("agent", [True, False])
def test_a_process_takes_its_own_gpu_and_meets_the_others_of_its_life(monkeypatch, gpus, local, backend, device, agent):
    environment = dict(RANK="5", WORLD_SIZE="8", LOCAL_RANK=local, MASTER_ADDR="there", MASTER_PORT="29500")
    environment |= dict(TORCHELASTIC_RUN_ID="run" if agent else None)
    environment["TORCHELASTIC_USE_AGENT_STORE"] = str(agent)
    for name, value in environment.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    joined, stores, chosen, ends = [], [], [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *given, **named: joined.append((given, named)))
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *given, **named: stores.append((given, named)) or "store")
    monkeypatch.setattr(torch.distributed, "PrefixStore", lambda prefix, store: (prefix, store))
    monkeypatch.setattr(distributed, "_name_of_life", lambda store, rank, processes: f"{store} {rank} {processes}")
    monkeypatch.setattr(distributed, "_life", "")
    monkeypatch.setattr(distributed.atexit, "register", ends.append)
    monkeypatch.setattr(distributed.atexit, "unregister", ends.remove)
    assert start_processes() == "pytorch"
    assert chosen == device
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if gpus else None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    meeting = dict(store=("aligntok/meeting/store 5 8", "store"), rank=5, world_size=8) if agent else {}
    assert joined == [((backend,), meeting)]
    named = dict(is_master=False, timeout=timedelta(seconds=30))
    assert stores == ([(("there", 29500), named)] if agent else [])
    assert distributed.life() == ("store 5 8" if agent else "")
    assert len(ends) == 1
    distributed.abandon_process_group()
    assert ends == []


def test_each_life_has_a_name_of_its_own_that_all_its_processes_have():
    """In one store, in which there is all that lives before have left; some began theirs and did not get on."""
    store, names = torch.distributed.HashStore(), []
    store.set("aligntok/asked/1", "a word of a process that is gone")
    for processes in (3, 3, 2, 4, 1):
        with ThreadPoolExecutor(processes) as pool:
            asked = [pool.submit(distributed._name_of_life, store, rank, processes) for rank in range(processes)][::-1]
            (name,) = {each.result(timeout=30) for each in asked}
        names.append(name)
    assert len({*names}) == 5


def test_who_waits_for_others_in_vain_is_told(monkeypatch):
    store, said = torch.distributed.HashStore(), "not all of 2 processes came within 0.2 s; look for the first failure"
    monkeypatch.setattr(distributed, "JOINING_SECONDS", 0.2)
    for rank in (1, 0):
        with pytest.raises(ProcessError, match=said):
            distributed._name_of_life(store, rank, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setattr(distributed, "_parent", os.getppid() + 1)
    with pytest.raises(ProcessError, match="the torchrun that started this process was killed"):
        distributed._name_of_life(store, 1, 3)
