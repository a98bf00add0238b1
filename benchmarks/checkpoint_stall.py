"""What a checkpoint holds a training up: the stall of a step that writes it aside, beside one that waits for the disk.

    python benchmarks/checkpoint_stall.py [--megabytes 200] [--folder .] [--rounds 5] [--steps 10]

A chain of linear layers of so many MB is trained by AdamW with one average, so a checkpoint holds four times that. In
each round steps are made without a checkpoint, with one that is written while the next go on, and with one that is
waited for; printed are medians of what a checkpoint adds: to its own step, and to all steps until it is whole, which on
few processors share them with the writing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from aligntok.engine.ema import WeightAverages
from aligntok.engine.saving import CheckpointWriter


class Training:
    """A model of `megabytes` of weights, its optimiser, its average: steps, and what a checkpoint of them holds."""

    def __init__(self, megabytes: float) -> None:
        layers = max(1, round(megabytes * 1e6 / 4 / (1024 * 1025)))
        self.model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(layers)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.ema = WeightAverages({"decoder": self.model}, [0.05])

    def step(self) -> float:
        """Make a step; return its seconds."""
        began = time.perf_counter()
        self.model(torch.randn(8, 1024)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        return time.perf_counter() - began

    def content(self) -> dict[str, object]:
        """Return what a checkpoint holds."""
        sides = {"autoencoder": self.optimizer.state_dict()}
        parts = {"decoder": self.model.state_dict()}
        return {"parts": parts, "ema": self.ema.state_dict(), "optimizers": {"sides": sides}}


def measure(folder: Path, megabytes: float, rounds: int, steps: int) -> dict[str, float]:
    """Return median seconds: of a step, and what a checkpoint adds, by how it is written."""
    training = Training(megabytes)
    writers = {kind: CheckpointWriter(folder / kind, 1, asynchronous=kind == "aside") for kind in ("aside", "waiting")}
    found: dict[str, list[float]] = {}
    for number in range(1, rounds + 2):  # the first is to warm up, and makes the memory of the copies
        plain = statistics.median(training.step() for _ in range(steps))
        found.setdefault("a step", []).append(plain)
        for kind, writer in writers.items():
            began = time.perf_counter()
            writer.write(number, training.content())
            found.setdefault(f"{kind}: its own step", []).append(time.perf_counter() - began)
            slower = 0.0
            while writer.saved != number:
                slower += training.step() - plain
            found.setdefault(f"{kind}: all steps until it is whole", []).append(
                found[f"{kind}: its own step"][-1] + slower
            )
            found.setdefault(f"{kind}: until it is whole", []).append(time.perf_counter() - began)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200.0)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        found = measure(Path(folder), asked.megabytes, asked.rounds, asked.steps)
    waited = found["waiting: its own step"]
    for name, value in found.items():
        print(f"{name:40s} {value:8.3f} s   {value / waited:7.1%} of the stall of one that is waited for")


if __name__ == "__main__":
    main()
