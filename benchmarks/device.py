"""What one GPU makes of the recipe: training, memory, compilation, a generator, sampling, the same bits twice.

    python benchmarks/device.py                                # all parts, at most 10 minutes, as they come
    python benchmarks/device.py --only compiled deterministic  # some of them
    python benchmarks/device.py --reference ../LightningDiT    # a clone of the published code, beside ours

Each part runs in a process of its own, with a limit of its own, and prints its lines when it is done; one that fails or
takes too long says so, and the next begins. Weights and images are random, and lie in memory. `--small` takes models of
a few thousand weights, to see on a CPU that everything runs; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPE, GENERATOR = "aligntok_dinov2_f16d32.py", "generator/lightningdit_xl_aligntok_f16d32_64ep.py"
TINY_VIT = dict(type="timm", model_name="vit_tiny_patch16_224", pretrained=False, model_args=dict(depth=2))
SMALL_RECIPE = {
    "model.encoder": {**TINY_VIT, "_delete_": True},
    "model.decoder.ch": 32,
    "losses.lpips.net": "alex",
    "losses.gan.adaptive_weight.images": 2,
    "stages.1.losses.semantic.adaptive_weight.images": 2,
    "discriminator.group_images": 2,
    "data.train.image_size": 64,
}
SMALL_GENERATOR = {"generator.size": "S", "generator.depth": 2, "generator.input_size": 4}
POINTS, GUIDANCE = 16, 4.0  # of samplings: 15 steps
FIXED = {"losses.gan.adaptive_weight": None, "stages.1.losses.semantic.adaptive_weight": None}
Lines = Iterator[str]


class Setting(NamedTuple):
    """What all parts are told: how large everything is, how long, and where configs and what is written are."""

    small: bool
    seconds: float  # of steps that are timed
    configs: Path
    folder: Path
    reference: Path | None  # a clone of the published LightningDiT

    @property
    def shape(self) -> dict[str, Any]:
        """The size of the generator, its depth if it is not that size's own, and the side of its latents."""
        return dict(size="S", depth=2, latent_size=4) if self.small else dict(size="XL", depth=None, latent_size=16)

    @property
    def precision(self) -> str:
        """The precision of trainings; a CPU may take a minute for a step in bf16."""
        return "bf16" if torch.cuda.is_available() else "fp32"

    def images(self, number: int) -> int:
        """Return so many, or two where everything is small."""
        return 2 if self.small else number


def take_steps(it: Setting, config: str, stage: str, images: int, **options: Any) -> dict[str, float]:
    """Train a stage of a config with random weights; return what :func:`timed` finds."""
    from aligntok.evaluation.cost.steps import Step

    return timed(it, Step(ready(it, config, stage, images, **options)), images)


def timed(it: Setting, step: Callable[[], None], images: int) -> dict[str, float]:
    """Take steps; return images a second, peak GiB, and the first step's seconds."""
    from aligntok.evaluation.cost.measure import synchronise

    synchronise()
    began = time.perf_counter()
    step()
    synchronise()
    first = time.perf_counter() - began
    for _ in range(3):
        step()
    synchronise()
    start, number = time.perf_counter(), 0
    while time.perf_counter() - start < it.seconds or number < 2:
        step()
        synchronise()
        number += 1
    rate = number * it.images(images) / (time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    return dict(rate=rate, gib=peak, first=first)


def ready(it: Setting, config: str, stage: str, images: int, **options: Any) -> Any:
    """Return a stage as it is measured, from random weights."""
    from aligntok.evaluation.cost.steps import for_measuring
    from aligntok.training.config import load_config
    from aligntok.training.run import expand

    small = (SMALL_GENERATOR if config == GENERATOR else SMALL_RECIPE) if it.small else {}
    own = {
        "global_batch_size": it.images(images),
        "precision": it.precision,
        "work_dir": str(it.folder),
        **small,
        **options,
    }
    stages = expand(load_config(it.configs / config, own))
    return for_measuring(next(each for each in stages if each.name == stage), it.folder, 1)


def told(found: dict[str, float]) -> str:
    """Say what steps took."""
    return f"{found['rate']:8.1f} images/s, {found['gib']:5.1f} GiB, first step {found['first']:.1f} s"


def stages(it: Setting) -> Lines:
    """The three stages at 8 images; paper, an H100: 38, 20, 37 images/s; goal three times that."""
    for name in ("latent_alignment", "perceptual_alignment", "decoder_refinement"):
        yield f"{name:24s} {told(take_steps(it, RECIPE, name, 8))}"
        clean_up()


def ratios(it: Setting) -> Lines:
    """Stage 2 with adaptive weights over stage 2 with fixed ones; goal at most 1.05."""
    seconds = [1 / take_steps(it, RECIPE, "perceptual_alignment", 8, **own)["rate"] for own in ({}, FIXED)]
    yield f"adaptive over fixed weights: {seconds[0] / seconds[1]:.3f} x"


def memory(it: Setting) -> Lines:
    """Stage 2 at 64 images, beside what a dry run says of it; goal 60 GiB."""
    from aligntok.training.memory import stage_memory

    planned = stage_memory(ready(it, RECIPE, "perceptual_alignment", 64), 1)
    yield f"planned: {(planned.states + planned.activations) / 2**30:.1f} GiB"
    yield f"64 images                {told(take_steps(it, RECIPE, 'perceptual_alignment', 64))}"


def compiled(it: Setting) -> Lines:
    """Stage 2, compiled, in two processes one after the other; goal 60 s to the first step, then 20 s."""
    for start in ("first", "second"):
        words = words_of("compiled_start", it)
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(it.folder / "compiled"), "TRITON_CACHE_DIR": str(it.folder / "triton")}
        said = subprocess.check_output(words, text=True, env={**os.environ, **cache})
        yield f"{start} start:            {said.splitlines()[-1].strip()}"


def compiled_start(it: Setting) -> Lines:
    """One start of it."""
    yield told(take_steps(it, RECIPE, "perceptual_alignment", 8, compile=True))


def published(it: Setting, how: str, ours: Any) -> Any:
    """Return the published LightningDiT with the weights of ours, and what its scripts do with it."""
    from published_dit import build_published

    from aligntok.device import device

    more = dict(reference=it.reference, points=POINTS, compile=how == "compiled", grad_checkpointing=False)
    return build_published(argparse.Namespace(**it.shape, **more), ours, device())


def generator(it: Setting) -> Lines:
    """LightningDiT-XL/1 at 128 images; paper's 237, goal 400 images/s."""
    from aligntok.evaluation.cost.steps import Step

    for how, own in (("eager", {}), ("compiled", {"compile": True})):
        clean_up()
        step = Step(ready(it, GENERATOR, "generation", 128, **own))
        ours = timed(it, step, 128)
        yield f"{how:24s} {told(ours)}"
        batch, model = step.micro_batches[0], step.runner.trained_model.generator.cpu()
        del step
        if it.reference:
            yield from published_steps(it, how, model, batch, ours)


def published_steps(it: Setting, how: str, model: Any, batch: dict[str, Any], ours: dict[str, float]) -> Lines:
    """The published code on the same batch, from the same weights, and ours over it."""
    from published_dit import take_step

    from aligntok.device import device

    clean_up()
    side = published(it, how, model)
    step = partial(take_step, side, batch["latents"].to(device()), batch["label"].to(device()), it.precision)
    theirs = timed(it, step, 128)
    yield f"{f'published, {how}':24s} {told(theirs)}"
    rate, memory = ours["rate"] / theirs["rate"], ours["gib"] / theirs["gib"]
    yield f"{f'ours / published, {how}':24s} {rate:.2f} x the images/s, {memory:.2f} x the memory"


def sampling(it: Setting) -> Lines:
    """32 guided images of 15 steps, decoded; goal 45 images/s."""
    from published_dit import GUIDED_3

    from aligntok.decoders.ldm_cnn import LDMDecoder
    from aligntok.device import computing, device
    from aligntok.diffusion.guidance import classifier_free
    from aligntok.diffusion.samplers import sample
    from aligntok.diffusion.times import time_grid
    from aligntok.engine.compile import compile_blocks
    from aligntok.generators.lightning_dit import LightningDiT

    size, depth, side = it.shape.values()
    model = LightningDiT(size, input_size=side, in_channels=32, **(dict(depth=depth) if depth else {}))
    model = model.to(device()).eval()
    decoder = LDMDecoder(ch=32 if it.small else 128).to(device()).eval()
    images = it.images(32)
    noise, labels = torch.randn(images, 32, side, side, device=device()), torch.arange(images, device=device())

    def ours(scale: float) -> Any:
        return sample(classifier_free(model, labels, model.null_class, scale), noise, time_grid(POINTS))

    @torch.inference_mode()
    def line(how: str, precision: str, guided: bool, latents: Callable[[], Any]) -> tuple[str, float]:
        began, number = 0.0, -1  # a first draw may compile
        while number < 1 or time.perf_counter() - began < it.seconds:
            with computing(precision, whole=True):
                decoder(latents()).float().cpu()
            number += 1
            began = began if number else time.perf_counter()
        rate = number * images / (time.perf_counter() - began)
        return f"{how}, {precision}, {'guided' if guided else 'unguided'}: {rate:.1f} images/s", rate

    for how in ("eager", "compiled"):
        if how == "compiled":
            compile_blocks([model], {})
        said, rate = line(how, it.precision, True, partial(ours, GUIDANCE))
        yield said
        if it.reference:
            drawn = partial(published(it, how, model).samplings[GUIDED_3], noise, labels)
            said, its = line(f"published, {how}", it.precision, True, drawn)
            yield f"{said}; ours / published: {rate / its:.2f} x"
        if how == "eager":  # compiled, one kind for the time that there is
            yield line(how, "tf32", True, partial(ours, GUIDANCE))[0]
            yield line(how, it.precision, False, partial(ours, 1.0))[0]


def deterministic(it: Setting) -> Lines:
    """Three steps of stage 2, twice from one seed, with and without deterministic=True; goal: all tensors equal."""
    from aligntok.device import repeatable
    from aligntok.evaluation.cost.steps import Step

    for asked in (True, False):  # cuBLAS is told once, before it is first used
        found = []
        for _ in range(2):
            stage = ready(it, RECIPE, "perceptual_alignment", 8)
            with repeatable(asked):
                torch.manual_seed(0)
                step = Step(stage)
                for _ in range(3):
                    step()
            state = step.runner.trained_model.state_dict()
            tensors = [each.detach().cpu().contiguous().flatten().view(torch.uint8) for each in state.values()]
            found.append([hashlib.sha256(each.numpy()).digest() for each in tensors])
            del step, state
            clean_up()
        equal = sum(a == b for a, b in zip(*found, strict=True))
        yield f"deterministic={asked}: {equal} of {len(found[0])} tensors equal"


def attention(it: Setting) -> Lines:
    """The kernels of attention at the product's shapes."""
    small = ["--shapes", "17x2x8", "--packed", "5", "1", "9", "--images", "2", "--rounds", "3"] if it.small else []
    words = [sys.executable, str(Path(__file__).with_name("attention.py")), *small]
    yield from subprocess.check_output(words, text=True).splitlines()


def words_of(part: str, it: Setting) -> list[str]:
    """Return the command of a process that runs one part."""
    words = [sys.executable, "-W", "ignore", __file__, "--part", part, "--seconds", str(it.seconds)]
    words += ["--configs", str(it.configs), *(["--small"] if it.small else [])]
    return words + (["--reference", str(it.reference)] if it.reference else [])


def clean_up() -> None:
    """Let go of what a measurement held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


#: Parts, and the seconds that each may take: together less than 10 minutes.
PARTS: dict[str, tuple[Callable[[Setting], Lines], float]] = {
    "stages": (stages, 80),
    "ratios": (ratios, 45),
    "memory": (memory, 50),
    "deterministic": (deterministic, 70),
    "compiled": (compiled, 110),
    "generator": (generator, 125),
    "sampling": (sampling, 85),
    "attention": (attention, 30),
}


def main() -> None:
    """Run what is asked for, part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0, help="of steps that are timed, each time")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="default: those beside this file's folder")
    parser.add_argument("--reference", type=Path, help="folder of a clone of the published LightningDiT")
    parser.add_argument("--limit", type=float, default=1.0, help="times the seconds that a part may take")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        it = Setting(given.small, given.seconds, given.configs, Path(folder), given.reference)
        if given.part:
            for line in (compiled_start if given.part == "compiled_start" else PARTS[given.part][0])(it):
                print(f"  {line}", flush=True)
        else:
            run(given.only, it, given.limit)


def run(parts: list[str], it: Setting, limit: float) -> None:
    """Run parts, each in a process of its own, and say where."""
    if it.reference:
        from published_dit import import_published

        import_published(it.reference)  # ends here if it cannot be imported
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a CPU, whose numbers mean nothing"
    print(f"{where}; torch {torch.__version__}", flush=True)
    for name in parts:
        print(f"\n{name}: {PARTS[name][0].__doc__}", flush=True)
        began = time.perf_counter()
        here = {**os.environ, "TMPDIR": str(it.folder)}  # nothing stays of one that is ended
        with subprocess.Popen(words_of(name, it), env=here, start_new_session=True) as process:
            try:
                if code := process.wait(limit * PARTS[name][1]):
                    print(f"  ended with {code}; what it said stands above", flush=True)
            except subprocess.TimeoutExpired as error:
                print(f"  took longer than {error.timeout:.0f} s, and was ended", flush=True)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # with what it started
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
