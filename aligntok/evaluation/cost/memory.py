"""Bytes: the peak that is allocated while something runs, and what is free."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

GB = 1e9  # bytes: what every "GB" here is


def peak_allocated() -> int:
    """Return the peak, since the last call, of the bytes that tensors take on a GPU, as CUDA's allocator counts."""
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return most


class LiveTensors(TorchDispatchMode):
    """The same on a CPU, where torch has no count: bytes of all tensors that operations took or gave and that live.

    A tensor's storage counts once, from the first operation that sees it until it is freed: weights, activations kept
    for the backward pass, gradients, the state of optimisers. What a kernel allocates for itself alone does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self._most = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def peak(self) -> int:
        """Return the peak since the last call, or the beginning, and begin anew."""
        most, self._most = self._most, self.live
        return most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        self._see((args, given))
        result = func(*args, **given)
        self._see(result)
        return result

    def _see(self, tree: Any) -> None:
        for value in tree_iter(tree):
            if isinstance(value, Tensor) and value.device.type == "cpu" and value.layout is torch.strided:
                self._see_storage(value.untyped_storage())
        self._most = max(self._most, self.live)

    def _see_storage(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.live += size


@contextmanager
def metering(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yield what returns the peak of bytes, since its last call, of what runs inside, on a GPU or a CPU."""
    if device.type == "cuda":
        peak_allocated()
        yield peak_allocated
        return
    with LiveTensors() as live:
        yield live.peak


def free_bytes(device: torch.device) -> float:
    """Return what can still be allocated on a device; infinity where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return min(_free_of_machine(Path("/proc/meminfo")), _free_of_group(Path("/sys/fs/cgroup")))


def _free_of_machine(meminfo: Path) -> float:
    """Return what Linux says it could give, without swapping."""
    try:
        lines = meminfo.read_text().splitlines()
        (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(available) * 1024
    except (OSError, ValueError, IndexError):
        return float("inf")


def _free_of_group(group: Path) -> float:
    """Return what is left of a container's limit (cgroup v2); the cache of files can be given back."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(told.get("inactive_file", 0))
    except (OSError, ValueError):
        return float("inf")
