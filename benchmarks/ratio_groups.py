"""Gradient ratios by the number of images: of the whole batch, of groups of 8, and of a process with 8 images alone.

    python benchmarks/ratio_groups.py [--batches 8 16 64] [--processes 1 2 8] [--image-size 64]

One stage-2 step of a small model with random weights, whose encoder has left its teacher a little, on smooth noise.
"alone" is what the code that the paper builds on finds with one process for each 8 images: plain autograd, the
discriminator's batch norm over these 8, and the mean of the processes' ratios. Groups must give the same however many
processes share the batch; the ratio of the whole batch is another one.
"""

from __future__ import annotations

import argparse
import tempfile
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from adaptive_weights import LOSSES, build_model
from torch import Tensor

from aligntok.training.alignment.model import AlignmentModel
from aligntok.training.stages import MicroBatch

GROUP = 8


def model_of(image_size: int, images: int | None) -> AlignmentModel:
    """Return the model, its ratios and norms of groups of so many images, or of the whole batch."""
    torch.manual_seed(0)
    weights = {name: {**LOSSES[name]["adaptive_weight"], "images": images} for name in ("gan", "semantic")}
    losses = {name: {**loss, "adaptive_weight": weights.get(name)} for name, loss in LOSSES.items()}
    model = build_model(image_size, losses, {"type": "patchgan", "group_images": images})
    model.load_start(None)
    with torch.no_grad():
        for parameter in model.tokenizer.encoder.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def batch_of(images: int, image_size: int) -> Tensor:
    """Return smooth noise (images, 3, image_size, image_size) in [-1, 1]."""
    coarse = torch.randn(images, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=image_size, mode="bicubic").tanh()


def found(model: AlignmentModel, images: Tensor) -> list[float]:
    """Return the ratios of the adversarial and the semantic loss in a step; collective."""
    logs = model.backward({"images": images}, MicroBatch(0, 0, 1))
    return [float(logs[f"ratio/{name}"]) for name in ("gan", "semantic")]


def alone(model: AlignmentModel, images: Tensor) -> list[float]:
    """Return the ratios of a process with these images alone, by plain autograd over one joined graph."""
    tokenizer, losses = model.tokenizer, model.objective.losses
    latents = tokenizer.encode(images)
    reconstruction = tokenizer.decode(latents)
    likeness = losses["l1"](images, reconstruction) + losses["lpips"](images, reconstruction)
    adversarial = -model.discriminator(reconstruction).mean()
    semantic = (latents - model.teacher(images)["teacher_latents"]).square().mean()

    def ratio(reference: Tensor, other: Tensor, last: Tensor) -> Tensor:
        pulls = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reference, other)]
        return pulls[0] / pulls[1]

    gan = ratio(likeness, adversarial, tokenizer.decoder.last_layer)
    held = ratio(likeness + 0.5 * gan * adversarial, semantic, tokenizer.encoder.last_layer)
    return [float(gan), float(held)]


def work(rank: int, processes: int, store: str, image_size: int, batch: int, results: Any) -> None:
    """Find the ratios of groups as one of several processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    own = batch_of(batch, image_size).chunk(processes)[rank]
    ratios = found(model_of(image_size, GROUP), own)
    if rank == 0:
        results.put(ratios)
    dist.barrier()
    dist.destroy_process_group()


def of_processes(processes: int, image_size: int, batch: int) -> list[float]:
    """Return the ratios of groups that so many processes find together."""
    if processes == 1:
        return found(model_of(image_size, GROUP), batch_of(batch, image_size))
    context = get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        given = (processes, f"{folder}/store", image_size, batch, results)
        started = [context.Process(target=work, args=(rank, *given)) for rank in range(processes)]
        for process in started:
            process.start()
        ratios: list[float] = results.get(timeout=600)
        for process in started:
            process.join()
    return ratios


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--image-size", type=int, default=64)
    options = parser.parse_args()
    print(f"{'images':>6} {'ratio of':<32} {'GAN':>9} {'semantic':>9}")
    for batch in options.batches:
        images = batch_of(batch, options.image_size)
        each = [alone(model_of(options.image_size, None), own) for own in images.split(GROUP)]
        rows = {"the whole batch": found(model_of(options.image_size, None), images)}
        rows["8 images alone, the mean"] = [sum(values) / len(each) for values in zip(*each, strict=True)]
        for processes in options.processes:
            name = f"groups of 8, {processes} process{'es' * (processes > 1)}"
            rows[name] = of_processes(processes, options.image_size, batch)
        for name, ratios in rows.items():
            print(f"{batch:6} {name:<32} " + " ".join(f"{value:9.6f}" for value in ratios), flush=True)


if __name__ == "__main__":
    main()
