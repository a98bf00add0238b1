"""Linear probing: how much of an image's class can be read off its frozen latent by one linear layer (paper, App. A).

Every step takes the same images whatever the number of processes: their order follows from the seed, each process
computes with those that it holds, and gradients are summed. Results agree as far as the rounding of sums does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.caching.encoder import LatentEncoder
from aligntok.caching.settings import CacheSettings
from aligntok.device import device, multiplying
from aligntok.distributed import barrier, is_first, must_agree, total, world
from aligntok.distributed.job import batched, job, progress_bar, stop_if_preempted
from aligntok.errors import DataError
from aligntok.evaluation.images import RESIZE, EvaluationImages, begins_anew
from aligntok.evaluation.probe_features import (
    EncodedAnew,
    KeptFeatures,
    ProbeFeatures,
    Split,
    match_classes,
    statistics,
)
from aligntok.evaluation.results import Result, check_out, default_folder, identity, publish
from aligntok.evaluation.settings import ProbeSettings
from aligntok.loading import load_tokenizer
from aligntok.rng import rng, seed_torch
from aligntok.settings import Precision
from aligntok.tokenizer import Tokenizer

MEASURED_AT_ONCE = 1024  # images of the validation split, over all processes


class Epoch(NamedTuple):
    """What an epoch came to: mean loss and top-1 of its own batches, before each step; then of the validation split."""

    epoch: int
    train_loss: float
    train_top1: float
    top1: float
    top5: float


def linear_probe(asked: ProbeSettings) -> Result:
    """Train a linear classifier on a tokenizer's frozen latents and measure it: top-1 and top-5, in [0, 1].

    The tokenizer is what :func:`load_tokenizer` takes. The input is the whole latent, d h w numbers, or with `pool`
    their d means over positions; with `standardize` each less its mean over the training images and divided by its
    deviation. Adam at a constant rate; no augmentation.

    Writes ``linear_probe.json`` and ``report.html`` into `out` (None: ``evaluation/linear_probe`` in the tokenizer's
    folder). Collective under torchrun. Raises ConfigError for options that cannot be; DataError for images without
    classes, or with others in one split than in the other; what loading raises; Preempted after SIGTERM.
    """
    folder = default_folder(asked.tokenizer, "linear_probe") if asked.out is None else Path(asked.out).expanduser()
    with job(), multiplying(asked.precision):  # the probe as the tokenizer
        check_out(folder)
        wanted = ((asked.train_split, asked.num_train), (asked.val_split, asked.num_val))
        how = (asked.encode_batch_size, asked.workers)
        images = [EvaluationImages(asked.data, asked.image_size, *each, *how) for each in wanted]
        weights: dict[str, Any] = {} if asked.weights is None else {"weights": asked.weights}
        model = load_tokenizer(asked.tokenizer, **weights)
        encode = FeatureEncoder(model, images[0].image_size, asked.precision, asked.pool)
        names, splits = make_splits(images, encode)
        recipe = {"epochs": asked.epochs, "optimizer": "Adam", "lr": asked.lr, "batch_size": asked.batch_size}
        recipe |= {"seed": asked.seed, "standardize": asked.standardize, "augmentation": None}
        recipe |= {"weights": asked.weights, "precision": asked.precision}
        settings = describe(splits, encode, len(names), model) | recipe
        must_agree(settings, "another tokenizer, other images")
        train, val = feature_sets(splits, asked.memory_gb, asked.workers)
        probe = Probe(encode.dim, len(names), asked.lr, asked.seed)
        if asked.standardize:
            probe.standardize(*statistics(train, in_order(train), total))
        history = run(probe, train, val, asked.epochs, asked.batch_size, asked.seed)
        metrics, table = {"top1": history[-1].top1, "top5": history[-1].top5}, [each._asdict() for each in history]
        result = Result("linear_probe", str(asked.tokenizer), metrics, settings, {"Epochs": table})
        if is_first():
            publish(result, folder)
        barrier()
    return result


class FeatureEncoder:
    """Encoder and adapter, frozen: images (N, 3, H, W) to what the probe sees, (N, dim), float32 on the CPU."""

    def __init__(self, tokenizer: Tokenizer, size: tuple[int, int], precision: Precision, pool: bool) -> None:
        self.encoder = LatentEncoder(tokenizer, CacheSettings(image_size=size, hflip=False, precision=precision))
        self.encoder.to_device()
        self.pool, self.shape = pool, self.encoder.latent_shape
        self.dim = self.shape[0] if pool else self.shape[0] * self.shape[1] * self.shape[2]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of a batch. Raises DataError when some are not finite."""
        latents = self.encoder(images)[:, 0].float()
        if not latents.isfinite().all():
            raise DataError(
                f"the latents are not finite in {self.encoder.encoding.precision}; take --precision fp32. If they are "
                "not finite in fp32 either, the tokenizer is broken"
            )
        return latents.mean(dim=(2, 3)) if self.pool else latents.flatten(1)


def make_splits(images: Sequence[EvaluationImages], encode: FeatureEncoder) -> tuple[list[str], list[Split]]:
    """Return the names of the classes, and the two splits. Raises DataError when classes do not agree."""
    names, *maps = match_classes(*(each.source for each in images))
    return names, [Split(each, labels, encode, encode.dim) for each, labels in zip(images, maps, strict=True)]


def describe(splits: Sequence[Split], encode: FeatureEncoder, classes: int, model: Tokenizer) -> dict[str, Any]:
    """Return what fixes the features, as JSON types."""
    train, val = splits
    return {
        "data": [split.source.where for split in splits],
        "images": len(val),
        "train_images": len(train),
        "classes": classes,
        "image_size": list(train.images.image_size),
        "resize": RESIZE,
        "tokenizer": {"identity": identity(model)},
        "latent": list(encode.shape),
        "features": "means over positions" if encode.pool else "whole latents, flattened",
        "features_dim": encode.dim,
    }


def feature_sets(splits: Sequence[Split], memory_gb: float, workers: int) -> list[ProbeFeatures]:
    """Return the features of both splits, kept if they fit; collective."""
    batch = splits[0].images.batch_size
    rows = [-(-len(split) // batch // world()[1]) * batch for split in splits]  # at most, in one process
    needed = sum(count * split.dim * 4 for count, split in zip(rows, splits, strict=True)) / 1e9
    kept = needed <= memory_gb
    if is_first():
        done = "encoded once, and kept" if kept else f"encoded anew each epoch: more than memory_gb={memory_gb:g}"
        print(f"Features: {splits[0].dim} an image, {needed:.3g} GB a process; {done}")
    return [KeptFeatures(split) if kept else EncodedAnew(split, workers, batch) for split in splits]


class Probe:
    """One linear layer and its Adam, the same in every process."""

    def __init__(self, dim: int, classes: int, lr: float, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            seed_torch("weights", seed)
            self.linear = nn.Linear(dim, classes)
        self.device = device()
        self.linear.to(self.device)
        self.optimizer = torch.optim.Adam(self.linear.parameters(), lr=lr)
        self.mean, self.deviation = torch.zeros(1, device=self.device), torch.ones(1, device=self.device)

    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """Take features (N, D) less `mean`, over `deviation`, from now on."""
        self.mean, self.deviation = mean.to(self.device), deviation.to(self.device)

    def logits(self, features: Tensor) -> Tensor:
        """Return (N, K) of features (N, D)."""
        return self.linear((features.to(self.device) - self.mean) / self.deviation)

    def step(self, features: Tensor, labels: Tensor) -> Tensor:
        """Take a step on the images of all processes, of which these are some; collective.

        Returns the sums (3,) over all processes of loss, right guesses and images, on the CPU.
        """
        labels = labels.to(self.device)
        logits = self.logits(features)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        parameters = [self.linear.weight, self.linear.bias]
        gradients = torch.autograd.grad(loss, parameters)
        right = (logits.argmax(dim=1) == labels).sum()
        counts = torch.stack([loss.detach(), right.float(), torch.tensor(float(len(labels)), device=self.device)])
        flat = total(torch.cat([*(each.flatten() for each in gradients), counts]))
        *sums, counts = flat.split([*(each.numel() for each in parameters), 3])
        for parameter, summed in zip(parameters, sums, strict=True):
            parameter.grad = (summed / counts[2].clamp(min=1)).view_as(parameter)
        self.optimizer.step()
        return counts.cpu()

    @torch.no_grad()
    def guesses(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return how many (3,) of the images are right at the first guess, among the first five, and there at all."""
        logits, labels = self.logits(features), labels.to(self.device)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        return torch.stack([best[:, 0].sum(), best.sum(), torch.tensor(len(labels), device=self.device)]).cpu()


def run(probe: Probe, train: ProbeFeatures, val: ProbeFeatures, epochs: int, batch_size: int, seed: int) -> list[Epoch]:
    """Train for so many epochs, measuring after each; collective. Raises Preempted, and DataError for bad images."""
    generator = rng("probe", seed)
    history = []
    for number in range(1, epochs + 1):
        order = torch.randperm(len(train), generator=generator)
        loss, right, count = go_through(
            train, batched(order, batch_size), probe.step, f"probe, epoch {number}/{epochs}"
        ).tolist()
        first, five, measured = go_through(
            val, in_order(val), lambda x, y: total(probe.guesses(x, y)), "probe, validation"
        ).tolist()
        history.append(Epoch(number, loss / count, right / count, first / measured, five / measured))
        if is_first():
            now = history[-1]
            print(
                f"Epoch {number}/{epochs}: training loss {now.train_loss:.4f}, top-1 {now.train_top1:.2%}; "
                f"validation top-1 {now.top1:.2%}, top-5 {now.top5:.2%}"
            )
    return history


def in_order(features: ProbeFeatures) -> list[Tensor]:
    """Return the rows of a split, in order, in the batches that are measured at once."""
    return batched(torch.arange(len(features)), MEASURED_AT_ONCE)


def go_through(
    features: ProbeFeatures, rows: Sequence[Tensor], act: Callable[[Tensor, Tensor], Tensor], what: str
) -> Tensor:
    """Call `act` on each batch and return the sum (3,) of what it returns, the number of images last; collective.

    Raises DataError when more than 1 % of the images cannot be read, and Preempted.
    """
    sums, asked = torch.zeros(3, dtype=torch.float64), 0
    with progress_bar(len(features), what, "image") as bar:
        for batch, (x, y) in zip(rows, features.batches(rows), strict=True):
            sums += act(x, y)
            asked += len(batch)
            bar.update(len(batch))
            stop_if_preempted(begins_anew())
            if asked - int(sums[2]) > -(-len(features) // 100):
                raise DataError(
                    f"{asked - int(sums[2])} of the first {asked} images cannot be read (named above), more than 1 % "
                    f"of all {len(features)}; repair or remove them: the numbers would be of other images than you mean"
                )
    return sums
