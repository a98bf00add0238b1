"""What a training step of a generator and a guided sampling cost on the CPU, part by part, beside the published code.

    python benchmarks/generator_step.py --threads 2
    python benchmarks/generator_step.py --threads 2 --reference ../LightningDiT   # a clone of the published code

Training: LightningDiT S/1 on latents of 32 x 16 x 16 in float32, linear path, logit-normal times, squared error and
direction loss, AdamW, one moving average. Sampling: 4 images over 16 points, that is 15 Euler steps, without guidance
and with classifier-free guidance of all channels, of the first 3 as the published code has it, and in an interval with
shifted times, which both sides can. Weights, latents and labels are random.

In each round everything takes its turn, so that a noisy machine disturbs all alike; printed are medians and quartiles,
and for ratios those of the ratios within a round. With one thread the seconds are the processor's own, whatever else
runs on the machine. Parts of a sampling are timed by hooks (not with --compile).
Without --reference the published code's seconds are those of --published-step and --published-sampling. With it they
are measured: its model and its guidance, AdamW as torch gives it and its loop over the weights for the moving average;
both sides have the same weights, path, loss and Euler steps.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from published_dit import (
    CHANNELS,
    CLASSES,
    DECAY,
    GUIDED_3,
    IN_INTERVAL,
    SCALE,
    SHIFT,
    START,
    Sampling,
    Side,
    build_published,
    depth_of,
    take_step,
)
from torch import Tensor, nn

from aligntok.diffusion.guidance import classifier_free
from aligntok.diffusion.samplers import sample
from aligntok.diffusion.times import time_grid
from aligntok.engine.compile import compile_blocks
from aligntok.engine.ema import WeightAverages
from aligntok.evaluation.cost.measure import now, spread
from aligntok.generators.lightning_dit import SIZES, LightningDiT

IMAGES = 4
#: The work whose seconds are known of the published code, by option.
KNOWN_WORK = {
    "size": "S",
    "depth": None,
    "latent_size": 16,
    "batch_size": 8,
    "points": 16,
    "threads": 2,
    "compile": False,
    "grad_checkpointing": False,
}
GUIDED, UNGUIDED = "guided, all channels", "unguided"
#: Goals in shares of the published code's seconds, and of samplings which of ours is held against which of theirs.
TRAINING, SAMPLED, SAMPLED_IN_INTERVAL = "training step", "guided sampling", "guided in an interval"
GOALS = {TRAINING: 0.90, SAMPLED: 0.70, SAMPLED_IN_INTERVAL: 0.70}
AGAINST = {SAMPLED: (GUIDED, GUIDED_3), SAMPLED_IN_INTERVAL: (IN_INTERVAL, IN_INTERVAL)}
#: The names of modules, ours and the published ones alike, whose time is a part of a sampling's.
PARTS = {
    r"blocks\.\d+\.attn": "attention",
    r"blocks\.\d+\.mlp": "MLPs",
    r"[ty]_embedder|.*adaLN_modulation": "condition",
}
REST, WHOLE = "the rest", "the whole step"

Laps = dict[str, float]


def build_ours(given: argparse.Namespace) -> Side:
    """Return our model, optimiser, average and samplings."""
    model = LightningDiT(given.size, input_size=given.latent_size, in_channels=CHANNELS, **depth_of(given))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)  # as initialised, most gradients would be 0
    model.set_grad_checkpointing(given.grad_checkpointing)
    if given.compile:
        compile_blocks([model], {})

    def sampling(shift: float = 1.0, scale: float = SCALE, **guidance: Any) -> Sampling:
        grid = time_grid(given.points, shift)
        return lambda noise, y: sample(classifier_free(model, y, model.null_class, scale, **guidance), noise, grid)

    samplings = {
        GUIDED: sampling(),
        GUIDED_3: sampling(channels=3),
        IN_INTERVAL: sampling(interval=(START, 1.0), shift=SHIFT),
        UNGUIDED: sampling(scale=1.0),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0, fused=True)
    return Side(model, optimizer, WeightAverages({"generator": model}, [], [DECAY]).update, samplings)


def time_training(side: Side, given: argparse.Namespace) -> Laps:
    """Take one training step; return its seconds by part."""
    side.model.train()
    shape = (given.batch_size, CHANNELS, given.latent_size, given.latent_size)
    data, labels = torch.randn(shape), torch.randint(CLASSES, shape[:1])
    laps, began = {}, now()

    def lap(part: str) -> None:
        laps[part] = now() - began - sum(laps.values())

    take_step(side, data, labels, lap=lap)
    return {**laps, WHOLE: sum(laps.values())}


def time_sampling(side: Side, name: str, noise: Tensor, labels: Tensor, hooked: bool) -> Laps:
    """Draw samples once; return the seconds of the whole and, if hooked, by part."""
    side.model.eval()
    side.batches.clear()
    seconds: Counter[str] = Counter()
    handles = list(_time_modules(side.model, seconds)) if hooked else []
    began = now()
    side.samplings[name](noise, labels)
    whole = now() - began
    for handle in handles:
        handle.remove()
    rest = {REST: whole - sum(seconds.values())} if hooked else {}
    return {WHOLE: whole, **seconds, **rest}


def _time_modules(model: nn.Module, seconds: Counter[str]) -> Any:
    """Count the seconds of the modules that PARTS names; yields the handles of the hooks that do it."""
    began: list[float] = []
    for name, module in model.named_modules():
        for part in (part for pattern, part in PARTS.items() if re.fullmatch(pattern, name)):
            yield module.register_forward_pre_hook(lambda *_: began.append(now()))
            yield module.register_forward_hook(lambda *_, part=part: seconds.update({part: now() - began.pop()}))


@dataclass
class Measured:
    """Of one side, in each round: the laps of its training steps, and of each sampling; and the calls of the model."""

    training: list[list[Laps]] = field(default_factory=list)
    samplings: list[dict[str, Laps]] = field(default_factory=list)
    batches: dict[str, list[int]] = field(default_factory=dict)


def measure(sides: dict[str, Side], given: argparse.Namespace) -> dict[str, Measured]:
    """Let the sides take turns for some rounds, after one that warms up."""
    noise = torch.randn(IMAGES, CHANNELS, given.latent_size, given.latent_size)
    labels = torch.randint(CLASSES, (IMAGES,))
    found = {name: Measured() for name in sides}
    for number in range(given.rounds + 1):
        for name, side in sides.items():
            training = [time_training(side, given) for _ in range(given.steps)]
            samplings = {}
            for sampling in side.samplings:
                samplings[sampling] = time_sampling(side, sampling, noise, labels, not given.compile)
                found[name].batches[sampling] = list(side.batches)
            if number:
                found[name].training.append(training)
                found[name].samplings.append(samplings)
    return found


def print_training(found: Measured, batch_size: int) -> None:
    """Print the parts of the training step."""
    steps = [laps for laps_of_round in found.training for laps in laps_of_round]
    whole = statistics.median(laps[WHOLE] for laps in steps)
    print(f"  {'training step':38s} {'s a step':>8s} (quartiles)      share")
    for part in steps[0]:
        values = [laps[part] for laps in steps]
        print(f"  {part:38s} {spread(values):24s} {statistics.median(values) / whole:6.1%}")
    print(f"  {'images a second':38s} {batch_size / whole:8.2f}")


def print_samplings(found: Measured) -> None:
    """Print the samplings, each with its parts and how often the model was called, with how many rows in all."""
    parts = list(dict.fromkeys(part for laps in found.samplings[0].values() for part in laps if part != WHOLE))
    head = f"{f'sampling {IMAGES} images':38s} {'s':>8s} {'(quartiles)':15s} calls   rows"
    print(f"  {head}{''.join(f'{part:>11s}' for part in parts)}")
    for name in found.samplings[0]:
        laps = [samplings[name] for samplings in found.samplings]
        shares = [statistics.median(lap[part] / lap[WHOLE] for lap in laps) for part in parts]
        calls = f"{len(found.batches[name]):5d} {sum(found.batches[name]):6d}"
        line = f"{name:38s} {spread([lap[WHOLE] for lap in laps]):24s} {calls}"
        print(f"  {line}{''.join(f'{share:11.1%}' for share in shares)}")


def print_goals(found: dict[str, Measured], given: argparse.Namespace) -> None:
    """Print ours over the published code's seconds, against the goals."""
    print("\nOurs over the published code")
    changed = [name for name, value in KNOWN_WORK.items() if getattr(given, name) != value]
    if not given.reference and changed:
        print(f"  no ratio: the published seconds are of other work, see {', '.join(changed)}")
        return
    steps = {n: [statistics.median(lap[WHOLE] for lap in laps) for laps in m.training] for n, m in found.items()}
    if given.reference:
        theirs = {name: [s[its][WHOLE] for s in found["published"].samplings] for name, (_, its) in AGAINST.items()}
        theirs[TRAINING] = steps["published"]
    else:
        once = {TRAINING: given.published_step, SAMPLED: given.published_sampling}
        theirs = {name: [seconds] * given.rounds for name, seconds in once.items()}
    for name in filter(theirs.__contains__, GOALS):
        drawn = [] if name == TRAINING else [s[AGAINST[name][0]][WHOLE] for s in found["ours"].samplings]
        ratios = [a / b for a, b in zip(drawn or steps["ours"], theirs[name], strict=True)]
        met = "met" if statistics.median(ratios) <= GOALS[name] else "not met"
        print(f"  {name:21s} {spread(ratios)}, goal at most {GOALS[name]:.2f}: {met}")
    if not given.reference:
        print(
            f"  The published side was not run beside ours in this run: its {given.published_step:g} and "
            f"{given.published_sampling:g} s were measured once, on two cores of another such machine."
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S", help="of LightningDiT")
    parser.add_argument("--depth", type=int, help="blocks, instead of the size's own")
    parser.add_argument("--latent-size", type=int, default=16, help="height and width of the latents")
    parser.add_argument("--batch-size", type=int, default=8, help="of the training step")
    parser.add_argument("--points", type=int, default=16, help="times of a sampling's grid: one step less")
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--steps", type=int, default=3, help="training steps of a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile, block by block")
    parser.add_argument("--grad-checkpointing", action="store_true")
    parser.add_argument("--reference", type=Path, help="folder of a clone of the published code, to run beside ours")
    parser.add_argument("--published-step", type=float, default=3.05, metavar="SECONDS")
    parser.add_argument("--published-sampling", type=float, default=15.6, metavar="SECONDS")
    return parser.parse_args()


def main() -> None:
    given = parse_arguments()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    sides = {"ours": build_ours(given)}
    if given.reference:
        sides["published"] = build_published(given, sides["ours"].model)
    millions = sum(p.numel() for p in sides["ours"].model.parameters()) / 1e6
    print(
        f"{given.threads} CPU threads, LightningDiT {given.size}/1 of {millions:.1f} million parameters, latents "
        f"{CHANNELS} x {given.latent_size} x {given.latent_size}, batch {given.batch_size}, {given.points} points; "
        f"{given.rounds} rounds of {given.steps} training steps",
        flush=True,
    )
    found = measure(sides, given)
    for name, measured in found.items():
        print(f"\n{name.capitalize()}")
        print_training(measured, given.batch_size)
        print_samplings(measured)
    print_goals(found, given)


if __name__ == "__main__":
    main()
