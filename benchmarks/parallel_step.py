"""What a step of an alignment costs in two gloo processes, replicated and shared out, beside an earlier checkout's.

    python benchmarks/parallel_step.py
    python benchmarks/parallel_step.py --against ../aligntok-before   # a checkout of the commit to compare with

Every engine is a pair of processes that stay: all losses on, both gradient ratios, a batch norm over the processes. In
each round every pair makes a few steps in turn while the others wait, so that a noisy machine disturbs all alike.
Printed are the median seconds of a step, the median of the ratios within a round, and the bytes that a process holds of
weights, optimiser states and averages (of shares: its own).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORKER = """
import json, sys, time
import torch, torch.distributed as dist
rank, store, policy, width, depth, size = int(sys.argv[1]), sys.argv[2], sys.argv[3], *map(int, sys.argv[4:7])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
from aligntok.distributed import parallel
from aligntok.engine.ema import WeightAverages
from aligntok.engine.optim import PartOptimizersConstructor
from aligntok.engine.runner import StepBatch
from aligntok.settings import read
from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.settings import StageSettings

torch.manual_seed(0)
vit = dict(depth=depth, embed_dim=width, num_heads=width // 64)
encoder = dict(type="timm", model_name="vit_small_patch16_224", pretrained=False, model_args=vit)
decoder = dict(type="ldm_cnn", ch=32, num_res_blocks=1, resolution=size)
losses = dict(
    l1=dict(type="l1"), gan=dict(type="gan", weight=0.5, adaptive_weight=dict(at="decoder")),
    semantic=dict(type="semantic_preservation", adaptive_weight=dict(at="encoder")),
)
settings = dict(
    steps=9, losses=losses, discriminator=dict(type="patchgan"), teacher="start",
    trainable=["encoder", "adapter", "decoder"], model=dict(encoder=encoder, decoder=decoder, latent_dim=16),
)
model = AlignmentModel(read(StageSettings, settings, "stage"))
model.load_start(None)
trained = model
if policy == "before":
    trained = parallel.SelfReducing(model)
else:
    parallel.parallelise(model, policy)
adam = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9))
sides = dict(autoencoder=adam, discriminator=adam)
optim = PartOptimizersConstructor(dict(sides, clip_grad_norm=1.0, max_skipped=9, spike_factor=None))(model)
averages = WeightAverages(model.averaged_parts(), [0.05])
images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(rank)) * 2 - 1

def own(tensors):
    return sum(getattr(t, "to_local", lambda t=t: t)().numel() * t.element_size() for t in tensors)

def held():
    states = (t for side in optim.values() for s in side.optimizer.state.values() for t in s.values() if t.dim())
    kept = (t for part in averages.state(0.05).values() for t in part.values())
    return own(model.parameters()) + own(states) + own(kept)

step = 0
for line in sys.stdin:
    dist.barrier()
    began = time.perf_counter()
    for _ in range(int(line)):
        trained.train_step(StepBatch(step, [dict(images=images)]), optim)
        averages.update()
        step += 1
    print(json.dumps([(time.perf_counter() - began) / int(line), held()]), flush=True)
"""


class Pair:
    """Two processes of one engine."""

    def __init__(self, policy: str, checkout: Path, store: Path, sizes: list[int]) -> None:
        env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", WORKER]
        pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=checkout)
        words = [str(store), policy, *map(str, sizes)]
        self.processes = [subprocess.Popen([*command, str(rank), *words], **pipes) for rank in range(2)]

    def steps(self, number: int) -> tuple[float, int]:
        """Make so many steps; return the seconds of one, of the slower process, and the bytes that one holds."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        found = [json.loads(process.stdout.readline()) for process in self.processes if process.stdout is not None]
        return max(seconds for seconds, _ in found), max(held for _, held in found)

    def end(self) -> None:
        """End both."""
        for process in self.processes:
            process.kill()
            process.wait()


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a line for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a checkout whose engine averaged gradients itself")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--width", type=int, default=384, help="of the encoder")
    parser.add_argument("--depth", type=int, default=6, help="of the encoder")
    parser.add_argument("--image-size", type=int, default=64)
    options = parser.parse_args(arguments)
    engines = {"replicate": ROOT, "shard": ROOT}
    if options.against:
        engines = {"before": options.against.resolve(), **engines}
    with tempfile.TemporaryDirectory() as folder:
        sizes = [options.width, options.depth, options.image_size]
        pairs = {name: Pair(name, where, Path(folder, name), sizes) for name, where in engines.items()}
        try:
            for pair in pairs.values():
                pair.steps(2)  # the first ones are slower
            rounds = [{name: pair.steps(options.steps) for name, pair in pairs.items()} for _ in range(options.rounds)]
        finally:
            for pair in pairs.values():
                pair.end()
    first = next(iter(pairs))
    for name in pairs:
        seconds = statistics.median(each[name][0] for each in rounds)
        ratio = statistics.median(each[name][0] / each[first][0] for each in rounds)
        held, all_of_it = rounds[-1][name][1], rounds[-1][first][1]
        print(
            f"{name:10s} {seconds:.3f} s a step, {ratio:.3f} x {first}; a process holds {held / 1e6:.1f} MB, "
            f"{held / all_of_it:.3f} x {first}"
        )


if __name__ == "__main__":
    main()
