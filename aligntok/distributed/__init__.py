"""Processes: starting them under torchrun (NCCL on GPU, gloo on CPU), and what they exchange."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from aligntok.device import allow_repeatable
from aligntok.errors import DataError, ProcessError

ORPHANED = "the torchrun that started this process was killed"
JOINING_SECONDS = 600.0  # for all processes of a start to be there


def start_processes() -> str:
    """Join the process group that torchrun's environment describes, if any; return mmengine's launcher name.

    mmengine 0.10.7 calls ``torch.cuda.set_device`` on a machine without a GPU, so the group is made here first.
    """
    global _parent
    allow_repeatable()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return "none"
    _parent = os.getppid()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            # where a scheduler shows each process a GPU of its own, that is the first of one
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        # Tensors on the GPU go by NCCL; numbers that the CPU holds, such as votes, by gloo, which needs no GPU.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, **_meeting_place())
        atexit.register(_end_process_group)
    return "pytorch"


def _end_process_group() -> None:
    """End the process group before the interpreter ends.

    A thread of gloo's may still hold a tensor of the last exchange; freeing it needs the interpreter, and without one
    aborts the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def abandon_process_group() -> None:
    """Let this process exit with its group as it is: ending it would wait for exchanges that others have left."""
    atexit.unregister(_end_process_group)


_life = ""
_parent = 0


def is_orphaned() -> bool:
    """Tell whether the torchrun that started this process is gone.

    Nobody would start the process again with the others, and it would stand in the way of one that does.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != _parent


def life() -> str:
    """Name this start of the run's processes, alike in all; torchrun's restarts are others."""
    return _life


def connect_to_store() -> dist.TCPStore:
    """Connect to the store that the processes meet at: torchrun's, or the first process's."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))


def _meeting_place() -> dict[str, Any]:
    """Return where the processes meet: as torch finds it, or, under torchrun, a place in its store for this life alone.

    torch 2.14 lets torchrun keep one store through its restarts, where a process would find the addresses of the life
    before, and be refused.
    """
    global _life
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}  # a store of their own for each life, in the first process
    rank, processes, store = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), connect_to_store()
    _life = _name_of_life(store, rank, processes)
    return {"store": dist.PrefixStore(f"aligntok/meeting/{_life}", store), "rank": rank, "world_size": processes}


def _name_of_life(store: dist.Store, rank: int, processes: int) -> str:
    """Return the same new name in each of the processes that torchrun started together.

    Its restart count is none: each machine's torchrun counts for itself, one that joins later from 0. So the first
    process counts, and tells whoever asks, by a word that no life before has used.
    """
    asked = [f"aligntok/asked/{other}" for other in range(processes)]
    if rank:
        word = secrets.token_hex(8)
        store.set(asked[rank], word)
        answer = f"aligntok/answered/{word}"
        _wait_for_all(lambda: store.check([answer]), processes)
        name = store.get(answer).decode()
        store.set(f"aligntok/heard/{name}/{rank}", "")
        return name
    name = str(store.add("aligntok/lives", 1))

    def all_heard() -> bool:
        for place in asked[1:]:
            if store.check([place]):
                store.set(f"aligntok/answered/{store.get(place).decode()}", name)
        return all(store.check([f"aligntok/heard/{name}/{other}"]) for other in range(1, processes))

    _wait_for_all(all_heard, processes)
    return name


def _wait_for_all(there: Callable[[], bool], processes: int) -> None:
    ends = time.monotonic() + JOINING_SECONDS
    while not there():
        if is_orphaned():
            raise ProcessError(ORPHANED)
        if time.monotonic() > ends:
            raise ProcessError(
                f"not all of {processes} processes came within {JOINING_SECONDS:g} s; look for the first failure in "
                "the output of torchrun on each machine"
            )
        time.sleep(0.1)


def world() -> tuple[int, int]:
    """Return (rank, number of processes): (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def alone() -> Iterator[None]:
    """Be one process that exchanges nothing, inside of it: for tensors without values, which no other could take."""
    with mock.patch.object(dist, "is_initialized", return_value=False):
        yield


def is_first() -> bool:
    """Tell whether this process is the one that writes files and prints."""
    return world()[0] == 0


def is_first_of_node() -> bool:
    """Tell whether this process is the one of its machine that looks at files for all of them."""
    return world()[1] == 1 or int(os.environ.get("LOCAL_RANK", 0)) == 0


def barrier() -> None:
    """Wait until every process is here; nothing to wait for without a process group."""
    if world()[1] > 1:
        dist.barrier()


def total(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, on its own device; collective."""
    if world()[1] == 1:
        return tensor
    summed = tensor.clone()
    dist.all_reduce(summed)
    return summed


def gather(rows: Tensor) -> list[Tensor]:
    """Return the rows (n, ...) of every process, alike but for their number n, in the processes' order; collective."""
    rank, processes = world()
    if processes == 1:
        return [rows]
    counts = torch.zeros(processes, dtype=torch.int64)
    counts[rank] = len(rows)
    counts = total(counts)
    padded = rows.new_zeros(max(1, int(counts.max())), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(found, padded)
    return [part[:count] for part, count in zip(found, counts.tolist(), strict=True)]


def any_process(flag: bool) -> bool:
    """Tell whether `flag` holds in any process; collective."""
    return bool(total(torch.tensor(int(flag))))


def agree(number: int) -> bool:
    """Tell whether all processes have the same number; collective. (`must_agree` raises where they do not.)"""
    if world()[1] == 1:
        return True
    span = torch.tensor([number, -number])
    dist.all_reduce(span, dist.ReduceOp.MAX)
    return bool(span[0] == -span[1])


def must_agree(settings: Mapping[str, Any], what: str) -> None:
    """Raise DataError, which tells `what` may differ, in a process with other settings than the first; collective."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).digest()
    first = torch.tensor(list(digest), dtype=torch.uint8)
    broadcast([first])
    if bytes(first.tolist()) != digest:
        raise DataError(
            f"this process sees {what}, or other options than the first; give every machine the same files and the "
            "same command"
        )


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Replace `tensor`, in place, by its mean over all processes, and return it."""
    size = world()[1]
    if size > 1:
        dist.all_reduce(tensor)
        tensor /= size
    return tensor


class Group(NamedTuple):
    """Some of the images that all processes hold together: those held here, and the processes that hold all of them."""

    number: int
    images: slice
    processes: range


def groups_of(images: int, each: int) -> list[Group]:
    """Return the groups of `each` images that this process, with its `images` of a batch, has a part in.

    The batch is that of all processes, in their order; its last group may be smaller.
    """
    rank, processes = world()
    first = rank * images
    found = []
    for number in range(first // each, -(-(first + images) // each)):
        begin, end = number * each, min((number + 1) * each, processes * images)
        here = slice(max(begin - first, 0), min(end - first, images))
        found.append(Group(number, here, range(begin // images, -(-end // images))))
    return found


def number_of_groups(images: int, each: int) -> int:
    """Return how many groups of `each` images there are in a batch of which every process has `images`."""
    return -(-world()[1] * images // each)


def add_up(tensor: Tensor, processes: range) -> Tensor:
    """Return the sum of a tensor of some neighbouring processes in the first of them, in the others their own.

    All of them call it. Each gives to the first alone, so that what others have to add up meanwhile is not waited for.
    """
    if world()[0] != processes[0]:
        dist.send(tensor.contiguous(), processes[0])
        return tensor
    summed, given = tensor.clone(), torch.empty_like(tensor)
    for process in processes[1:]:
        dist.recv(given, process)
        summed += given
    return summed


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Give every process the first one's values, in place; collective."""
    if world()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)
