"""The commands of the golden run, as a user would type them, and who runs when: two lanes side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import inputs
import names

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 1500  # seconds of one batch of commands
SIZE = ("--image-size", str(inputs.SIZE))
NO_WORKERS = ("--workers", "0")
FEATURES = ("--extractor", inputs.TINY)
PRETRAINED = ("--extractor", inputs.PRETRAINED)
#: name -> options: every sampler, with and without guidance.
SAMPLES = {
    "euler, unguided": ("--cfg-scale", "1"),
    "euler, guided in part": ("--cfg-scale", "3", "--cfg-interval", "0.1", "0.9", "--cfg-channels", "3"),
    "heun, energy preserved": ("--sampler", "heun", "--preserve-energy"),
    "dopri5, shifted": ("--sampler", "dopri5", "--shift", "0.5"),
    "euler_maruyama, raw weights": (
        *("--sampler", "euler_maruyama", "--weights", "raw", "--classes", "zebra", names.FIRST_CLASS),
    ),
    "ddim, another average": ("--sampler", "ddim", names.SAMPLER_OPTIONS, "eta=0.5", names.AVERAGE, "0.1"),
    "euler, another size": ("--size", "48", "32", "--labels", "balanced"),
}
#: Folders of what is evaluated of the aligned tokenizer and its generator.
EVALUATED = ("sweep", "reconstruction", "generation", "probe")


def command(verb: tuple[str, ...], *words: object) -> list[str]:
    """Return the words of a command: the path of its tool, its verb, the rest."""
    return [str(ROOT / "tools" / verb[0]), *verb[1:], *map(str, words)]


def aligned(root: Path) -> list[list[str]]:
    """A tokenizer in four stages and a generator, and all that can be made of them."""
    data, run, samples = root / "pictures", root / "aligned", root / "samples"
    split = ("--split", "val", *SIZE, "--batch-size", "4", *NO_WORKERS)
    reference, pretrained = root / "reference.safetensors", root / "pretrained.safetensors"
    real = ("--split", "train", *SIZE, "--batch-size", 5, *NO_WORKERS)
    six = (names.NUM_SAMPLES, 6)
    drawn = [
        command(names.SAMPLE, run, *six, "--batch-size", 4, "--out", samples / str(i), "--steps", 3, *more)
        for i, more in enumerate(SAMPLES.values())
    ]
    drawn[0] += [names.BESIDE, str(data), "--split", "train"]
    sweep = ("--guidance-sweep", 2, "--sweep-steps", 2, 3, "--reference", reference, *FEATURES)
    probe = ("--epochs", 2, "--batch-size", 8, "--lr", "1e-2", "--encode-batch-size", 4)
    out = {name: ("--out", root / name) for name in EVALUATED}
    against = ("--reference", pretrained, *PRETRAINED, *NO_WORKERS)
    return [
        command(names.REFERENCE, data, reference, *real, *FEATURES),
        command(names.REFERENCE, data, pretrained, *real, *PRETRAINED, "--keep-features", 8),
        command(names.TRAIN, inputs.chain(root / "chain.py", data), "--work-dir", run),
        command(names.EXPORT, run, root / "export" / "ema"),
        command(names.EXPORT, run, root / "export" / "raw", "--weights", "raw"),
        command(names.EXPORT, run, root / "export" / "post_hoc", names.SIGMA_REL, "0.07"),
        *drawn,
        command(names.SAMPLE, run, *six, *out["sweep"], *sweep),
        command(names.RECONSTRUCTION, run, data, *out["reconstruction"], "--perceptual", "l1", *FEATURES, *split),
        command(names.GENERATION, samples / "1", *out["generation"], *against),
        command(names.PROBE, run, data, *out["probe"], *SIZE, *probe, *NO_WORKERS),
        command(names.REPORT, run, samples / "0", *(root / name for name in EVALUATED)),
    ]


def variational(root: Path) -> list[list[str]]:
    """A variational tokenizer, its caches, its latent space; what configs cost; and a comparison."""
    data, run = root / "pictures", root / "vavae"
    cache = (*SIZE, "--split", "train", "--batch-size", 5, "--shard-size", 10, *NO_WORKERS)
    encoder = ("--encoder", "timm:vit_tiny_patch16_224", "--encoder-options", "pretrained=False")
    latents = ("--split", "train", *SIZE, "--topk", 3, "--tsne-points", 20, "--seeds", 0, "--pca-images", 2)
    work = ("--work-dir", root / "comparison" / "out")
    shipped = ROOT / "configs" / "aligntok_dinov2_f16d32.py"
    counted = ("--meta", "--resolutions", 256, "--encoders", "ldm_cnn", "--out", root / "cost")
    return [
        command(names.TRAIN, inputs.vavae(root / "vavae.py", data), "--work-dir", run),
        command(names.CACHE, run, data, root / "caches" / "drawn", *cache, "--posterior", "sample", "--seed", 3),
        command(names.CACHE, run, data, root / "caches" / "mean", *cache, names.NO_MIRROR, "--dtype", "bf16"),
        command(names.ANALYZE, run, data, *encoder, *latents, *NO_WORKERS, "--out", root / "latent_space"),
        command(names.COST, shipped, root / "vavae.py", *counted),
        command(names.COMPARE, inputs.comparison(root / "comparison" / "comparison.py", data), *work),
    ]


def run_all(root: Path) -> None:
    """Leave everything that is read under `root`. Raises RuntimeError with what a command printed if it fails."""
    inputs.write_inputs(root)
    two = command(names.TRAIN, inputs.two_processes(root / "two.py", root / "pictures"), "--work-dir", root / "two")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with ThreadPoolExecutor(2) as lanes:
        begun = [lanes.submit(_batch, root, lane) for lane in (aligned, variational)]
        for lane in begun:
            lane.result()
    _start(root, [*torchrun, *two])


def _batch(root: Path, lane: Callable[[Path], list[list[str]]]) -> None:
    file = root / f"{lane.__name__}.json"
    file.write_text(json.dumps(lane(root)))
    _start(root, [str(Path(__file__).with_name("batch.py")), str(file)])


def _start(root: Path, words: list[str]) -> None:
    """Run Python with these words, one thread a process, on CPUs, with the code that lies beside this file."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    paths = [str(ROOT), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {**one, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    options = dict(cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT)
    done = subprocess.run([sys.executable, *words], env={**os.environ, **own}, **options)
    with (root / "printed.txt").open("a") as printed:
        printed.write(done.stdout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
