"""The features that a linear probe is trained on: kept in memory, or encoded anew whenever they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from aligntok.caching.encoder import Batch, ImagesToEncode
from aligntok.data.loader import explaining_loader_errors, make_loader
from aligntok.data.sources.base import ImageSource
from aligntok.distributed import world
from aligntok.distributed.job import batched
from aligntok.errors import DataError
from aligntok.evaluation.images import EvaluationImages, name_unreadable

Encode = Callable[[Tensor], Tensor]  # images (N, 3, H, W) to features (N, D), on the CPU


class Examples(NamedTuple):
    """Features (N, D) and classes (N,) of those images of a batch that are this process's; N may be 0."""

    features: Tensor
    labels: Tensor


class ProbeFeatures(Protocol):
    """The features of a split. `batches` are lists of rows, counted over all images: the same in every process."""

    def __len__(self) -> int:
        """The number of rows, images that cannot be read among them."""

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Examples]:
        """Yield this process's part of each batch, in order."""


class Split:
    """Images with classes, read and encoded; `label_of` maps the source's class indices to the probe's.

    A row is dealt to a process by its number, whatever batch it comes in: so its features can stay there.
    """

    def __init__(self, images: EvaluationImages, label_of: Tensor, encode: Encode, dim: int) -> None:
        self.images, self.label_of, self.encode, self.dim = images, label_of, encode, dim

    def __len__(self) -> int:
        return len(self.images)

    @property
    def source(self) -> ImageSource:
        """The source of the images."""
        return self.images.source

    def owner(self, rows: Tensor) -> Tensor:
        """Return which process has each row: that which `EvaluationImages` deals it to."""
        return rows // self.images.batch_size % world()[1]

    def mine(self, rows: Tensor) -> Tensor:
        """Return those of the rows that are this process's."""
        return rows[self.owner(rows) == world()[0]]

    def classes(self, labels: Tensor) -> Tensor:
        """Return the probe's classes of the source's labels."""
        return self.label_of[labels.long()]


class KeptFeatures:
    """Features in memory, float32: each process has those of its own rows. Encoding them is collective."""

    def __init__(self, split: Split) -> None:
        self.split = split
        own = split.mine(torch.arange(len(split)))
        self._at = torch.full((len(split),), -1)  # a row's place here, or -1
        self._features = torch.empty(len(own), split.dim)
        self._labels = torch.empty(len(own), dtype=torch.int64)
        filled = 0
        for rows, batch in split.images.read():
            end = filled + len(batch.images)
            self._features[filled:end] = split.encode(batch.images)
            self._labels[filled:end] = split.classes(batch.labels)
            self._at[rows] = torch.arange(filled, end)
            filled = end

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Examples]:
        """Yield this process's part of each batch, in order."""
        for batch in rows:
            places = self._at[batch]
            places = places[places >= 0]
            yield Examples(self._features[places], self._labels[places])


class EncodedAnew:
    """Features that are encoded each time they are asked for, where they would not fit into memory."""

    def __init__(self, split: Split, workers: int, encode_batch_size: int) -> None:
        self.split, self.workers, self.at_once = split, workers, encode_batch_size
        self._named: set[str] = set()

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Examples]:
        """Yield this process's part of each batch, in order."""
        dataset = ImagesToEncode(self.split.source, self.split.images.image_size)
        mine = [[self.split.images.places[row] for row in self.split.mine(batch).tolist()] for batch in rows]
        loader = iter(make_loader(dataset, [places for places in mine if places], self.workers, dataset.collate))
        for places in mine:
            if not places:
                yield Examples(torch.empty(0, self.split.dim), torch.empty(0, dtype=torch.int64))
                continue
            with explaining_loader_errors():
                batch: Batch = next(loader)
            name_unreadable(self.split.source, batch, self._named)
            self._named |= {found.name for found in batch.skipped}
            parts = [self.split.encode(part) for part in batched(batch.images, self.at_once)]
            features = torch.cat([torch.empty(0, self.split.dim), *parts])
            yield Examples(features, self.split.classes(batch.labels))


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


def statistics(features: ProbeFeatures, rows: Sequence[Tensor], add: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    """Return the mean and standard deviation (D,), float32, of the features over all rows; collective.

    `add` sums a tensor over processes. A feature that does not vary has the deviation 1.
    """
    count, total, squares = torch.zeros(1, dtype=torch.float64), None, None
    for features_, _ in features.batches(rows):
        x = features_.double()
        count += len(x)
        total = x.sum(0) if total is None else total + x.sum(0)
        squares = x.square().sum(0) if squares is None else squares + x.square().sum(0)
    assert total is not None
    assert squares is not None
    count, total, squares = add(count), add(total), add(squares)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(deviation > 1e-6, deviation, 1.0).float()
