"""Where the time of a training step goes, by part, in each of the three stages; and what a step costs without a part.

    python benchmarks/training_step.py [--stage 1|2|3|all] [--image-size 64] [--batch 4] [--workers 0] [--rounds 5]
    python benchmarks/training_step.py --full-size --image-size 256 --batch 64 --cfg-options precision=bf16  # on a GPU

The stages are those of a config (`--config`, the default recipe's), built as training builds them and fed with JPEGs
made on the spot; weights are random. Without `--full-size` the encoder is a ViT-S/16 and the decoder a quarter as wide;
LPIPS and discriminator are the recipe's.

One model a stage. In each round every variant of the step takes its turn, so a noisy machine disturbs them alike;
printed are medians, for variants of the ratios within a round, and the quartiles of those. Parts are timed in steps of
their own, by wrapping what the step calls (on a GPU that waits at every part, so the sum is more than the whole step).
Peak memory is that of a fresh process a variant: the resident set above the imported libraries, or what CUDA allocated.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.profiler import record_function

from aligntok.cli.arguments import parse_options
from aligntok.evaluation.cost.measure import Stopwatch, seconds_of
from aligntok.evaluation.cost.steps import Step as MeasuredStep
from aligntok.training.alignment import AlignmentStage, expand_stages
from aligntok.training.alignment import objective as objective_module
from aligntok.training.alignment.graph import ENCODER_SIDE, ForwardGraph
from aligntok.training.config import load_config

CONFIG = Path(__file__).parents[1] / "configs" / "aligntok_dinov2_f16d32.py"
SMALL = {
    "model.encoder": {"type": "timm", "model_name": "vit_small_patch16_224", "pretrained": False},
    "model.decoder.ch": 32,
}
DATA, ENCODE, DECODE = "data: waiting for the loader", "encoder and adapter, forward", "decoder, forward"
TEACHER, PULL, DISCRIMINATOR = "teacher, forward", "{}, forward and back", "discriminator's own loss, forward and back"
RATIOS, DECODE_BACK, ENCODE_BACK = "gradient ratios", "decoder, backward", "encoder and adapter, backward"
NORMS, OPTIMISERS, EMA, CHECKPOINT = "gradient norms and checks", "optimisers", "EMA", "checkpoint, one in {:,} steps"
REST = "the rest"
WHOLE, FIXED, AGAIN = "the whole step", "fixed weights, no gradient ratios", "the same batch again, no data loading"

Variant = Callable[[Any], AbstractContextManager[Any]]


class Step(MeasuredStep):
    """A step of a stage with everything that training builds, and which can do without new images and averages."""

    def __init__(self, stage: AlignmentStage) -> None:
        super().__init__(stage)
        self.model = self.runner.trained_model
        self.runner.optim_wrapper, self.ema = self.optimizers, None
        self.runner.load_or_resume()
        self.ema = self.runner.ema  # a checkpoint has them
        self.loads = self.averages = True

    def __call__(self) -> None:
        with ExitStack() as without:
            if not self.averages:
                without.enter_context(mock.patch.object(self, "ema", None))
            if not self.loads:
                without.enter_context(mock.patch.object(self, "next_batches", return_value=self.micro_batches))
            super().__call__()


class Watched(NamedTuple):
    """A call to be watched: whose attribute it is, and the part it counts as: by its arguments, if a function."""

    owner: Any
    attribute: str
    part: str | Callable[..., str]


def watched_calls(step: Step) -> Iterator[Watched]:
    """Yield the calls that a step is taken apart by."""
    model, objective = step.model, step.model.objective
    on_image = [
        t.name for t in objective.terms if objective.loss(t).at not in ENCODER_SIDE and t.adaptive_weight is None
    ]
    yield Watched(step, "next_batches", DATA)
    yield Watched(model.tokenizer.encoder, "forward", ENCODE)
    yield Watched(model.tokenizer.adapter, "forward", ENCODE)
    yield Watched(model.tokenizer.decoder, "forward", DECODE)
    if model.teacher is not None:
        yield Watched(model.teacher, "forward", TEACHER)
    if model.discriminator is not None:  # the pass over the reconstruction serves both sides
        gan = next(t.name for t in objective.terms if "fake_logits" in objective.loss(t).inputs)
        yield Watched(model, "_loss_inputs", PULL.format(gan))
        yield Watched(model, "_backward_discriminator", DISCRIMINATOR)
    yield Watched(objective, "backward_to_image", PULL.format(" and ".join(on_image)))
    yield Watched(objective, "_pull_balanced", lambda term, *_: PULL.format(term.name))
    yield Watched(objective_module, "ratio_at", RATIOS)
    yield Watched(ForwardGraph, "backward_decoder", DECODE_BACK)
    yield Watched(ForwardGraph, "backward_encoder", ENCODE_BACK)
    yield Watched(step.optimizers, "step_parts", NORMS)
    for _, side in step.optimizers.items():
        yield Watched(side, "step", OPTIMISERS)
    yield Watched(step.ema, "update", EMA)


def time_parts(step: Step) -> dict[str, float]:
    """Take one step and return its seconds by part."""
    watch, watched = Stopwatch(), list(watched_calls(step))
    pulls = {PULL.format(term.name) for term in step.model.objective.terms}

    def timing(part: str | Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with record_function(part if isinstance(part, str) else part(*args, **kwargs)):
                return function(*args, **kwargs)

        return timed

    with ExitStack() as stack:
        stack.enter_context(watch.listening({REST, *pulls, *(w.part for w in watched if isinstance(w.part, str))}))
        for owner, attribute, part in watched:
            timed = timing(part, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        timing(REST, step)()
    return dict(watch.seconds)


def variants(stage: AlignmentStage) -> dict[str, Variant]:
    """Return what a step is compared with: contexts in which a Step does without something, or with checkpointing."""
    found: dict[str, Variant] = {WHOLE: lambda step: nullcontext()}
    for name in list(stage.settings.losses)[1:]:  # the first, L1, is what is left
        found[f"without {name}" + " and teacher" * (name == "semantic")] = functools.partial(without_loss, name=name)
    found["without EMA"] = lambda step: mock.patch.object(step, "averages", False)
    found[FIXED] = without_ratios
    found[AGAIN] = lambda step: mock.patch.object(step, "loads", False)
    found["with gradient checkpointing"] = with_checkpointing
    found["Adam unfused, LPIPS channels-first"] = before_savings
    return found


def without_loss(step: Step, name: str) -> AbstractContextManager[Any]:
    """Drop one loss, and with it whatever only it needs: discriminator or teacher."""
    objective = step.model.objective
    return mock.patch.object(objective, "terms", [term for term in objective.terms if term.name != name])


def without_ratios(step: Step) -> AbstractContextManager[Any]:
    """Give the balanced losses their fixed weights only."""
    objective = step.model.objective
    return mock.patch.object(objective, "terms", [replace(term, adaptive_weight=None) for term in objective.terms])


@contextmanager
def with_checkpointing(step: Step) -> Iterator[None]:
    """Recompute the activations of encoder and decoder in the backward pass."""
    for enable in (True, False):
        step.model.tokenizer.encoder.set_grad_checkpointing(enable)
        step.model.tokenizer.decoder.set_grad_checkpointing(enable)
        if enable:
            yield


@contextmanager
def before_savings(step: Step) -> Iterator[None]:
    """Undo two savings that this benchmark led to."""
    for undone, layout in ((True, torch.contiguous_format), (False, torch.channels_last)):
        for side in step.optimizers.values():
            side.optimizer.param_groups[0]["fused"] = not undone
        if "lpips" in step.model.objective.losses:
            step.model.objective.losses["lpips"].net.to(memory_format=layout)
        if undone:
            yield


def peak_memory(options: dict[str, Any], stage: int, variant: str, threads: int) -> float:
    """Return the GiB that a variant takes: called in a process of its own, which has the libraries already."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message="Multi-processing start method")  # mmengine's, when it sets its own
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = Step(build_stage({**options, "data.workers": 0}, stage))  # a pool's process may start none
    with variants(step.stage)[variant](step):
        if variant == "without EMA":
            step.runner.ema = step.ema = None
        if not any(step.model.objective.needs(name) for name in ("teacher_latents", "teacher_features")):
            step.model.teacher = None
        for _ in range(2):  # the optimisers' state comes with the first
            step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def build_stage(options: dict[str, Any], index: int) -> AlignmentStage:
    """Return stage number `index` of the config: from random weights, and without a check that a variant would trip."""
    config = load_config(options["config"], {key: value for key, value in options.items() if key != "config"})
    stage = expand_stages(config)[index]
    return replace(stage, settings=replace(stage.settings, init_from=None, spike_factor=None), start_folder=None)


def make_images(folder: Path, number: int = 64) -> None:
    """Write JPEGs of ImageNet's usual size, 500 x 375: smooth colours and some noise, about 60 kB each."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(coarse) + rng.normal(0, 8, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.jpg", quality=90)


def measure(options: dict[str, Any], index: int, rounds: int, threads: int) -> None:
    """Measure one stage and print its two tables."""
    stage = build_stage({**options, "work_dir": options["work_dir"] + "/time"}, index)
    step, ways = Step(stage), variants(stage)
    parts: list[dict[str, float]] = []
    seconds: list[dict[str, float]] = []
    for _ in range(rounds + 1):  # the first warms up
        parts.append(time_parts(step))
        seconds.append({})
        for name, variant in ways.items():
            with variant(step):
                seconds[-1][name] = seconds_of(step)
    every = stage.settings.checkpoint.every
    saving = seconds_of(functools.partial(step.runner.save_step, step.number)) / every
    parts = [{**p, CHECKPOINT.format(every): saving} for p in parts[1:]]
    step.runner.checkpoints.finish()  # it is written while the next steps are taken, into a folder that is going to go
    print(f"\nStage {index + 1}, {stage.name}: trains {', '.join(stage.settings.trainable)}")
    print_parts(parts)
    del step
    # Ratios and data loading take no memory worth a process.
    peaks = {n: in_new_process(peak_memory, options, index, n, threads) for n in ways if n not in (FIXED, AGAIN)}
    print_variants(seconds[1:], peaks, stage.settings.global_batch_size)
    sys.stdout.flush()


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Return what `function` returns in a process that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aligntok.training.run", "aligntok.training.alignment.model", "timm"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(function, args)


def print_parts(rounds: list[dict[str, float]]) -> None:
    """Print seconds and share by part, medians over the rounds, the largest first."""
    medians = {part: statistics.median(r[part] for r in rounds) for part in rounds[0]}
    total = sum(medians.values())
    print(f"  {'part':42s} {'s a step':>9s} {'share':>7s}")
    for part, value in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"  {part:42s} {value:9.4f} {value / total:7.1%}")
    print(f"  {'sum':42s} {total:9.4f}")


def print_variants(rounds: list[dict[str, float]], peaks: dict[str, float], batch: int) -> None:
    """Print, a variant a line, medians of seconds and images a second, the ratio to the whole step, and memory."""
    print(f"  {'the step':42s} {'s a step':>9s} {'images/s':>9s} {'ratio (quartiles)':>20s} {'peak GiB':>9s}")
    for name in rounds[0]:
        value = statistics.median(r[name] for r in rounds)
        low, middle, high = statistics.quantiles([r[name] / r[WHOLE] for r in rounds], n=4, method="inclusive")
        spread = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        memory = f"{peaks[name]:9.2f}" if name in peaks else ""
        print(f"  {name:42s} {value:9.3f} {batch / value:9.2f} {spread:>20s} {memory}".rstrip())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="default: %(default)s")
    parser.add_argument("--stage", choices=["1", "2", "3", "all"], default="all")
    parser.add_argument("--full-size", action="store_true", help="the config's own encoder and decoder")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4, help="images of a step")
    parser.add_argument("--workers", type=int, default=0, help="data-loading processes (0: the step loads)")
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="as tools/train.py takes")
    return parser.parse_args()


def main() -> None:
    given = parse_arguments()
    torch.set_num_threads(given.threads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{given.threads} CPU threads"
    workers = f"{given.workers} data-loading processes" if given.workers else "the step loads its images itself"
    print(f"{device}, {given.image_size} pixels, batch {given.batch}, {workers}; medians of {given.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images" / "train" / "class")
        options = {
            "config": given.config,
            **({"model.encoder.pretrained": False} if given.full_size else SMALL),
            "losses.lpips.pretrained": False,
            "data.train.image_size": given.image_size,
            "data.val": None,
            "data.workers": given.workers,
            "data_root": f"{folder}/images",
            "global_batch_size": given.batch,
            "work_dir": folder,
            **parse_options(given.cfg_options),
        }
        for index in range(3) if given.stage == "all" else [int(given.stage) - 1]:
            measure(options, index, given.rounds, given.threads)


if __name__ == "__main__":
    main()
