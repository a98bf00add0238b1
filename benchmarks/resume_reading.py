"""What each process reads from the disk when a sharded training goes on from a checkpoint.

    torchrun --standalone --nproc-per-node 2 benchmarks/resume_reading.py [--gigabytes 4] [--folder .]

Processes share a chain of linear layers out (FSDP2), with AdamW and one average, and write a checkpoint. Its files are
dropped from the page cache, and each process looks whether they are whole and loads what is its own, as a resumed
training does. Printed is what Linux counts as read from the disk by each, beside its share of the checkpoint's tensors,
and whether these are the ones that were written.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from aligntok.distributed import barrier, is_first, world
from aligntok.distributed.dcp import sharded
from aligntok.distributed.parallel import Unit, parallelise
from aligntok.engine.checkpoints import open_newest, share_hashing
from aligntok.engine.ema import WeightAverages
from aligntok.engine.saving import write_checkpoint

WIDTH = 1024


class Chain(nn.Module):
    """A model of `layers` blocks, each of 4.2 MB."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply all layers."""
        for block in self.blocks:
            x = block(x)
        return x

    def units(self) -> list[Unit]:
        """What is shared out: the blocks one by one."""
        return [Unit(self, list(self.blocks))]


def measure(folder: Path, gigabytes: float) -> dict[str, float]:
    """Write a checkpoint together with the other processes, go on from it, and return what that took in this one."""
    rank, processes = world()
    model = Chain(round(gigabytes * 1e9 / 4 / 4 / (WIDTH * (WIDTH + 1))))
    parallelise(model, "shard")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, WIDTH)).sum().backward()
    optimizer.step()  # the first gives it its states
    ema = WeightAverages({"generator": model}, [0.05])
    content = {"parts": {"generator": model.state_dict()}, "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    files = [file for file in write_checkpoint(folder, 1, content, keep=1).iterdir() if file.is_file()]
    own = {name: tensor.to_local() for name, tensor in sharded(content).items()}
    optimizer.zero_grad()
    written = {name: fingerprint(tensor) for name, tensor in own.items()}
    for tensor in own.values():
        tensor.zero_()
    for file in files[rank::processes]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    barrier()
    before, began = bytes_read(), time.perf_counter()
    share_hashing(folder)
    found = open_newest(folder)
    assert found is not None
    found.load(found.content, sharded(content))
    return dict(
        read=bytes_read() - before,
        own=sum(tensor.numel() * tensor.element_size() for tensor in own.values()),
        whole=sum(file.stat().st_size for file in files),
        seconds=time.perf_counter() - began,
        same=all(fingerprint(tensor) == written[name] for name, tensor in own.items()),
    )


def fingerprint(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes: a second copy of all would push the files out of the page cache."""
    return hashlib.sha256(tensor.contiguous().numpy()).hexdigest()


def bytes_read() -> int:
    """Return what Linux counts as read from disks by this process, mapped files among it."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["read_bytes"])


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a line for each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the whole checkpoint")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be read")
    asked = parser.parse_args(arguments)
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.folder) if is_first() else nullcontext() as name:
        names = [name]
        dist.broadcast_object_list(names)
        found = measure(Path(str(names[0])), asked.gigabytes)
        for rank in range(world()[1]):
            barrier()
            if rank == world()[0]:
                print(
                    f"process {rank}: read {found['read'] / 1e6:.0f} MB of a checkpoint of {found['whole'] / 1e6:.0f} "
                    f"MB, {found['read'] / found['own']:.3f} x its own share, in {found['seconds']:.1f} s; "
                    f"{'bit for bit what was written' if found['same'] else 'NOT what was written'}",
                    flush=True,
                )
        barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
