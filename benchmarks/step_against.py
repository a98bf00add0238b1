"""What a training step costs beside that of another state of the code, in processor time, the two taking turns.

    git worktree add ../before COMMIT
    python benchmarks/step_against.py ../before [--config configs/demo/tiny_imagenet_f8d16.py] [--stage 1] [--rounds 20]

Each state has a process of its own with the same config, random weights and random images or latents; they step in
short bursts, in the order A B B A, so that a noisy machine disturbs both alike. Printed are both medians, and the
median and quartiles of the ratio within a round: this state's seconds over the other's. One thread each, because what
threads wait counts as theirs. The config's own sizes are used; make them small with --cfg-options.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OWN = Path(__file__).resolve().parents[1]
CONFIG = OWN / "configs" / "demo" / "tiny_imagenet_f8d16.py"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("against", type=Path, help="a checkout of the other state")
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--stage", type=int, default=1, help="the how-manieth, a generator's training too")
    parser.add_argument("--rounds", type=int, default=20, help="at least 2")
    parser.add_argument("--burst", type=int, default=3, help="steps of a turn")
    parser.add_argument("--cfg-options", nargs="+", default=[], dest="options", metavar="KEY=VALUE")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(given: argparse.Namespace) -> None:
    """Take a burst of steps for each line that comes, and print the seconds that one took this processor."""
    import torch

    from aligntok.cli.arguments import parse_options
    from aligntok.distributed.job import job
    from aligntok.evaluation.cost.steps import Step, for_measuring
    from aligntok.training.config import load_config
    from aligntok.training.run import expand

    torch.set_num_threads(1)
    options = {**parse_options(given.options), "work_dir": str(given.worker)}
    stage = expand(load_config(given.config, options))[given.stage - 1]
    step = Step(for_measuring(stage, given.worker, 1))
    with job():  # as a training has it
        for _ in sys.stdin:
            began = time.process_time()
            for _ in range(given.burst):
                step()
            print("seconds", (time.process_time() - began) / given.burst, flush=True)


class State:
    """A state of the code, in a process of its own that takes steps when it is asked to."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        path = os.pathsep.join([str(checkout), *map(str, (checkout / "plugins").glob("*"))])
        words = [sys.executable, __file__, *sys.argv[1:], "--worker", str(folder)]
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.seconds: list[float] = []

    def burst(self) -> float:
        """Take a burst of steps; return the seconds of one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print("go", file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("seconds "):
                self.seconds.append(float(line.split()[1]))
                return self.seconds[-1]
        raise SystemExit("a process ended before its time; what it said stands above")


def main() -> None:
    given = parse_arguments()
    if given.worker:
        return work(given)
    with tempfile.TemporaryDirectory() as folder:
        own, other = (State(place, Path(folder) / name) for place, name in ((OWN, "own"), (given.against, "other")))
        for state in (own, other):
            state.burst()  # warms up
            state.seconds.clear()
        for i in range(given.rounds):
            for state in (own, other) if i % 2 else (other, own):
                state.burst()
        for state in (own, other):
            state.process.communicate()
    ratios = [a / b for a, b in zip(own.seconds, other.seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    mine, theirs = (statistics.median(state.seconds) for state in (own, other))
    print(f"stage {given.stage}: {mine:.4f} s a step of one processor, {theirs:.4f} s before: {mine / theirs:.4f} x")
    print(f"ratio within a round, of {given.rounds}: {middle:.4f} ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
