"""What a checksum costs a checkpoint: seconds to write one without, to hash it, and both beside the steps in between.

    python benchmarks/checksums.py [--gigabytes 4] [--folder .] [--interval 1500] [--rounds 3]

Each round writes a checkpoint of so many GB of random weights into the folder without and with its checksum, by turns,
and reads it as a training that goes on does; printed are medians. `--interval` is the seconds of training between two
checkpoints: the recipe's 5,000 steps at 0.3 s a step (37 h on 8 GPUs, 440,000 steps) are 1,500.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from aligntok.engine.checkpoints import checkpoint_path, read_checkpoint
from aligntok.engine.saving import write_checkpoint
from aligntok.io import checksums
from aligntok.io.files import replacing


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(folder: Path, gigabytes: float, rounds: int) -> dict[str, float]:
    """Return median seconds: to write without and with a checksum, to hash, to read and check."""
    weights = [torch.randn(int(gigabytes * 1e9 / 4 / 16)) for _ in range(16)]
    content = {"parts": {"decoder": {str(i): weight for i, weight in enumerate(weights)}}}
    found: dict[str, list[float]] = {"plain": [], "with its checksum": [], "hash": [], "read and check": []}

    def plain() -> None:
        with replacing(folder / "plain.pt") as temporary:
            torch.save(content, temporary)

    for step in range(1, rounds + 1):
        found["plain"].append(seconds(plain))
        (folder / "plain.pt").unlink()
        found["with its checksum"].append(seconds(lambda step=step: write_checkpoint(folder, step, content, keep=1)))
        path = checkpoint_path(folder, step)
        checksums.forget()
        (shard,) = path.glob("*.safetensors")
        found["hash"].append(seconds(lambda shard=shard: checksums.sha256(shard)))
        checksums.forget()
        found["read and check"].append(seconds(lambda path=path: read_checkpoint(path)))
    return {name: statistics.median(times) for name, times in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--interval", type=float, default=1500.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        found = measure(Path(folder), asked.gigabytes, asked.rounds)
    for name, value in found.items():
        speed, share = asked.gigabytes / value, value / asked.interval
        print(f"{name:20s} {value:8.2f} s   {speed:6.2f} GB/s   {share:7.2%} of the interval")


if __name__ == "__main__":
    main()
