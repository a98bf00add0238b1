"""Linear probing: how much of an image's class can be read off its frozen latent by one linear layer (paper, App. A).

Every step takes the same images whatever the number of processes: their order follows from the seed, each process
computes with those that it holds, and gradients are summed. Results agree as far as the rounding of sums does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligntok.caching.encoder import Batch, latent_shape
from aligntok.data.loader import explaining_loader_errors, make_loader
from aligntok.data.sources.base import ImageSource
from aligntok.data.sources.held_out import check_apart
from aligntok.device import device, precision_taken
from aligntok.distributed import is_first, must_agree, total, world
from aligntok.distributed.job import batched, progress_bar, stop_if_preempted
from aligntok.errors import DataError
from aligntok.evaluation.images import RESIZE, EvaluationImages, begins_anew, frozen, name_unreadable
from aligntok.evaluation.results import Result, evaluating, identity, publish, result_folder
from aligntok.evaluation.settings import ImageSettings, ProbeSettings
from aligntok.io.console import say
from aligntok.loading import load_tokenizer
from aligntok.rng import rng, seed_torch
from aligntok.settings import Precision
from aligntok.tokenizer import Tokenizer

MEASURED_AT_ONCE = 1024  # images of the validation split, over all processes


def linear_probe(asked: ProbeSettings) -> Result:
    """Train a linear classifier on a tokenizer's frozen latents and measure it: top-1 and top-5, in [0, 1].

    The tokenizer is what :func:`load_tokenizer` takes. The input is the whole latent, d h w numbers, or with `pool`
    their d means over positions; with `standardize` each less its mean over the training images and divided by its
    deviation. Adam at a constant rate; no augmentation.

    Writes ``linear_probe.json`` and ``report.html`` into `out` (None: ``evaluation/linear_probe`` in the tokenizer's
    folder). Collective under torchrun. Raises ConfigError for options that cannot be; DataError for images without
    classes, or with others in one split than in the other; what loading raises; Preempted after SIGTERM.
    """
    folder = result_folder(asked.out, asked.tokenizer, "linear_probe")
    with evaluating(folder, asked.precision):
        how: dict[str, Any] = dict(data=asked.data, image_size=asked.image_size, workers=asked.workers)
        how |= dict(batch_size=asked.encode_batch_size, label=asked.label)
        wanted = ((asked.train_split, asked.num_train), (asked.val_split, asked.num_val))
        images = [EvaluationImages(ImageSettings(split=split, num_images=num, **how)) for split, num in wanted]
        check_apart(images[0].source, images[1].source, "give other images as one of train_split and val_split")
        model = load_tokenizer(asked.tokenizer, weights=asked.weights)
        encode = FeatureEncoder(model, images[0].image_size, asked.precision, asked.pool)
        names, *labels = match_classes(*(each.source for each in images))
        train, val = (SplitFeatures(*each, encode) for each in zip(images, labels, strict=True))
        settings = {
            "data": [each.source.where for each in images],
            "images": len(val),
            "train_images": len(train),
            "classes": len(names),
            "image_size": list(images[0].image_size),
            "resize": RESIZE,
            "tokenizer": {"identity": identity(model)},
            "latent": list(encode.shape),
            "features": "means over positions" if encode.pool else "whole latents, flattened",
            "features_dim": encode.dim,
            "epochs": asked.epochs,
            "optimizer": "Adam",
            "lr": asked.lr,
            "batch_size": asked.batch_size,
            "seed": asked.seed,
            "standardize": asked.standardize,
            "augmentation": None,
            "weights": asked.weights,
            "precision": precision_taken(asked.precision),
        }
        must_agree(settings, "another tokenizer, other images")
        keep_what_fits([train, val], asked.memory_gb)
        scale = statistics(train) if asked.standardize else (torch.zeros(1), torch.ones(1))
        probe = Probe(encode.dim, len(names), asked.lr, asked.seed, *scale)
        history = run(probe, train, val, asked)
        settings |= {"images": len(val) - val.unreadable(), "train_images": len(train) - train.unreadable()}
        settings |= {"unreadable": val.unreadable(), "train_unreadable": train.unreadable()}
        metrics = {name: history[-1][name] for name in ("top1", "top5")}
        return publish(Result("linear_probe", str(asked.tokenizer), metrics, settings, {"Epochs": history}), folder)


class FeatureEncoder:
    """Encoder and adapter, frozen: images (N, 3, H, W) to what the probe sees, (N, dim), float32 on the CPU."""

    def __init__(self, tokenizer: Tokenizer, size: tuple[int, int], precision: Precision, pool: bool) -> None:
        self.shape = latent_shape(tokenizer, size)
        self.encode = frozen(tokenizer, precision, "encode")
        self.precision, self.pool = precision, pool
        self.dim = self.shape[0] if pool else self.shape[0] * self.shape[1] * self.shape[2]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of a batch. Raises DataError when some are not finite."""
        latents = self.encode(images).cpu()
        if not latents.isfinite().all():
            raise DataError(
                f"the latents are not finite in {self.precision}; take --precision fp32. If they are not finite in "
                "fp32 either, the tokenizer is broken"
            )
        return latents.mean(dim=(2, 3)) if self.pool else latents.flatten(1)


class SplitFeatures:
    """Features and classes of a split's images; `label_of` maps the source's class indices to the probe's.

    They are encoded whenever they are needed, or once (:meth:`keep`), with the same result. A row, an image's number
    in the split, is dealt to a process whatever batch it comes in: so its features can stay there.
    """

    def __init__(self, images: EvaluationImages, label_of: Tensor, encode: FeatureEncoder) -> None:
        self.images, self.label_of, self.encode = images, label_of, encode
        self._features: Tensor | None = None
        self._named: set[str] = set()

    def __len__(self) -> int:
        """The number of rows, images that cannot be read among them."""
        return len(self.images)

    def unreadable(self) -> int:
        """The number of images, of those gone through, that could not be read; collective."""
        return self.images.skipped + int(total(torch.tensor(len(self._named))))

    def mine(self, rows: Tensor) -> Tensor:
        """Return those of the rows that are this process's: those that `EvaluationImages` deals to it."""
        rank, processes = world()
        return rows[rows // self.images.asked.batch_size % processes == rank]

    def keep(self) -> None:
        """Encode all images and keep their features in memory, float32, in each process its own; collective."""
        own = len(self.mine(torch.arange(len(self))))
        self._at = torch.full((len(self),), -1)  # a row's place here, or -1
        self._labels = torch.empty(own, dtype=torch.int64)
        self._features, filled = torch.empty(own, self.encode.dim), 0
        for batch in self.images:
            here = slice(filled, filled + len(batch.images))
            self._features[here] = self.encode(batch.images)
            self._labels[here] = self.label_of[batch.labels.long()]
            self._at[self.images.rows(batch)] = torch.arange(here.start, here.stop)
            filled = here.stop

    def batches(self, rows: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (N, D) and classes (N,) of this process's part of each batch, in order; N may be 0.

        `rows` are the batches, the same in every process.
        """
        if self._features is not None:
            for batch in rows:
                kept = self._at[batch]
                kept = kept[kept >= 0]
                yield self._features[kept], self._labels[kept]
            return
        dataset, how = self.images.dataset, self.images.asked
        wanted = [[self.images.indices[row] for row in self.mine(batch).tolist()] for batch in rows]
        loader = iter(make_loader(dataset, [indices for indices in wanted if indices], how.workers, dataset.collate))
        for indices in wanted:
            with explaining_loader_errors():
                read: Batch = next(loader) if indices else dataset.collate([])
            self._named |= set(name_unreadable(self.images.source, read, self._named))
            parts = [self.encode(part) for part in batched(read.images, how.batch_size)]
            yield torch.cat([torch.empty(0, self.encode.dim), *parts]), self.label_of[read.labels.long()]


def match_classes(train: ImageSource, val: ImageSource) -> tuple[list[str], Tensor, Tensor]:
    """Return the names of the classes, and the class of each label of either source.

    Sources that name no classes are taken to number them alike. Raises DataError for images without a class, and for
    classes that one source alone has.
    """
    for source in (train, val):
        if (source.labels < 0).any():
            raise DataError(
                f"{source.where}: {int((source.labels < 0).sum())} images have no class; a linear probe needs one for "
                "each: class folders, or labels in shards or parquet files"
            )
    if not train.class_names and not val.class_names:
        count = int(max(train.labels.max(), val.labels.max())) + 1
        return [str(number) for number in range(count)], torch.arange(count), torch.arange(count)
    alone = sorted(set(train.class_names) ^ set(val.class_names))
    if alone:
        holder, other = (train, val) if alone[0] in train.class_names else (val, train)
        raise DataError(
            f"{len(alone)} classes are in one split alone, such as '{alone[0]}' in {holder.where} and not in "
            f"{other.where}; a linear probe is trained and measured on the same classes: give both splits the same "
            "class folders, or names"
        )
    names = sorted(train.class_names)
    number = {name: i for i, name in enumerate(names)}
    train_labels, val_labels = (torch.tensor([number[n] for n in s.class_names]) for s in (train, val))
    return names, train_labels, val_labels


def keep_what_fits(splits: Sequence[SplitFeatures], memory_gb: float) -> None:
    """Keep the features of both splits in memory, if they fit, and say whether; collective."""
    batch = splits[0].images.asked.batch_size
    rows = [-(-len(split) // batch // world()[1]) * batch for split in splits]  # at most, in one process
    dim = splits[0].encode.dim
    needed = sum(count * dim * 4 for count in rows) / 1e9
    fits = needed <= memory_gb
    if is_first():
        done = "encoded once, and kept" if fits else f"encoded anew each epoch: more than memory_gb={memory_gb:g}"
        say(f"Features: {dim} an image, {needed:.3g} GB a process; {done}")
    if fits:
        for split in splits:
            split.keep()


def statistics(features: SplitFeatures) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (D,), float32, of the features over all images; collective.

    A feature that does not vary has the deviation 1.
    """
    sums = torch.zeros(2, features.encode.dim, dtype=torch.float64)
    count = torch.zeros(1, dtype=torch.float64)
    for x, _ in features.batches(in_order(features)):
        count += len(x)
        sums += torch.stack([x.double().sum(0), x.double().square().sum(0)])
    mean, squares = total(sums) / total(count)
    deviation = (squares - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(deviation > 1e-6, deviation, 1.0).float()


class Probe:
    """One linear layer on features less `mean`, over `deviation`, and its Adam; the same in every process."""

    def __init__(self, dim: int, classes: int, lr: float, seed: int, mean: Tensor, deviation: Tensor) -> None:
        with torch.random.fork_rng(devices=[]):
            seed_torch("weights", seed)
            self.linear = nn.Linear(dim, classes)
        self.device = device()
        self.linear.to(self.device)
        self.optimizer = torch.optim.Adam(self.linear.parameters(), lr=lr)
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


def run(probe: Probe, train: SplitFeatures, val: SplitFeatures, asked: ProbeSettings) -> list[dict[str, float]]:
    """Train for the epochs asked for, measuring after each; collective. Raises Preempted, and DataError for bad images.

    Returns what each epoch came to: mean loss and top-1 of its own batches, before each step; then top-1 and top-5 of
    the validation split.
    """
    generator, history = rng("probe", asked.seed), []
    for number in range(1, asked.epochs + 1):
        order = torch.randperm(len(train), generator=generator)
        what = f"probe, epoch {number}/{asked.epochs}"
        loss, right, count = go_through(train, batched(order, asked.batch_size), probe.step, what).tolist()
        guessed = go_through(val, in_order(val), lambda x, y: total(probe.guesses(x, y)), "probe, validation")
        top1, top5 = (guessed[:2] / guessed[2]).tolist()
        loss, right = loss / count, right / count
        history.append({"epoch": number, "train_loss": loss, "train_top1": right, "top1": top1, "top5": top5})
        if is_first():
            say(
                f"Epoch {number}/{asked.epochs}: training loss {loss:.4f}, top-1 {right:.2%}; validation top-1 "
                f"{top1:.2%}, top-5 {top5:.2%}"
            )
    return history


def in_order(features: SplitFeatures) -> list[Tensor]:
    """Return the rows of a split, in order, in the batches that are measured at once."""
    return batched(torch.arange(len(features)), MEASURED_AT_ONCE)


def go_through(
    features: SplitFeatures, rows: Sequence[Tensor], act: Callable[[Tensor, Tensor], Tensor], what: str
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
            missing = asked - int(sums[2])
            if missing > -(-len(features) // 100) or missing == len(features):
                raise DataError(
                    f"{missing} of the first {asked} images cannot be read (named above), more than 1 % "
                    f"of all {len(features)}; repair or remove them: the numbers would be of other images than you mean"
                )
    return sums
