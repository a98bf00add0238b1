"""The data set of latents: a cache that tools/cache_latents.py wrote, mapped into memory and read a batch at a time."""

from __future__ import annotations

import logging
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from aligntok.data.captions import Captions
from aligntok.data.latent_shards import LatentStatistics, Manifest, Shard, damaged
from aligntok.data.lightningdit import TYPES, open_manifest
from aligntok.data.listing import Listing, hashes
from aligntok.data.sampler import SampleIndex
from aligntok.data.sources.classes import check_labels
from aligntok.device import DTYPES
from aligntok.distributed import is_first_of_node
from aligntok.errors import ConfigError, DataError, at_least
from aligntok.io.arrays import MappedRows, PairedRows
from aligntok.io.checksums import promised
from aligntok.io.files import inside
from aligntok.rng import rng
from aligntok.settings import Count

logger = logging.getLogger("aligntok.data")
_FLIPS_AT_ONCE = 4096  # samples whose flips come from one random stream: to seed one for each takes longer than to read
_CURE = "copy the cache again, whole, or make it anew"
_MOST_MAPPED = 512  # shards; each holds a file descriptor, of which a process often may have 1024


class _Items(list[dict[str, Any]]):
    """The items of a batch, and the batch that they are views of."""

    def __init__(self, batch: dict[str, Any], items: Iterable[dict[str, Any]]) -> None:
        super().__init__(items)
        self.batch = batch


class LatentDataset(Dataset[dict[str, Any]]):
    """The latents in the cache at `root`, normalised by the mean and deviation of each channel over the whole cache.

    An item is ``dict(latents=float32 (C, h, w), label=class index or -1, index=place in this data set)``; with
    `normalise` False the latents are as the tokenizer gave them. `denormalise` turns normalised ones back. When
    `train`, half of the samples are of the mirrored image (`hflip`; None: if the cache has them), and which ones
    follows from `seed` and the sample number of the :class:`SampleIndex` asked for; a plain integer asks for that
    image with the same integer as its sample number. Images that could not be read are not in the cache, so places are
    not those of the data set that was encoded: ``source_index[i]`` is.

    A batch is gathered at once (`batch`; a DataLoader does so too), which is fast enough to need no workers. With
    ``collate_fn=dataset.collate`` it is not copied a second time. Picklable; safe after a fork and in spawned workers.

    `tokenizer_identity` is the :attr:`aligntok.tokenizer.Tokenizer.identity` that the cache must have been made with;
    None takes any. Raises DataError when there is no cache, it is not finished, has no statistics, lacks a part of a
    shard, has one that is damaged (all are read once, to check), or is of another tokenizer; ConfigError for mirrored
    images it does not have, and a negative `seed`.

    A folder that LightningDiT filled (:mod:`aligntok.data.lightningdit`) is such a cache, too.

    With `caption` "auto" an item has ``caption``, too, of a cache that was made with captions: of several, the one that
    `seed` and the sample number draw when `train`, else, and for a plain integer, the first; ``captions[i]`` are all.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        hflip: bool | None = None,
        normalise: bool = True,
        tokenizer_identity: str | None = None,
        seed: Count = 0,
        caption: Literal["auto"] | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.manifest = open_manifest(self.root)
        made = self.manifest.encoding["tokenizer"]
        #: The identity of the tokenizer that encoded the cache; empty where nobody knows.
        self.identity = str(made["identity"])
        if tokenizer_identity is not None and not self.identity:
            logger.warning("%s does not say which tokenizer made its latents; the one asked for is believed", self.root)
        elif tokenizer_identity is not None and tokenizer_identity != self.identity:
            raise DataError(
                f"{self.root} holds latents of another tokenizer ({made['source']}, identity {self.identity[:12]}), "
                f"not of the one asked for (identity {tokenizer_identity[:12]}); encode the images with that one, into "
                "another folder, or use the tokenizer of the cache"
            )
        if hflip and self.manifest.copies == 1:
            raise ConfigError(f"{root} has no mirrored images; leave hflip out, or encode it without --no-hflip")
        at_least(0, seed=seed)
        self.train = train
        self.hflip = self.manifest.copies == 2 if hflip is None else hflip
        self.normalise = normalise
        #: Mean and standard deviation of each channel; a checkpoint of a generator should keep them.
        self.statistics = self.manifest.statistics
        #: (C, h, w) of an item.
        self.latent_shape = self.manifest.latent_shape
        #: The name of each class, empty where the source did not know any.
        self.class_names = self.manifest.class_names
        self.seed = seed
        self._shards = _open_shards(self.root, self.manifest)
        if caption is not None and not all(shard.captioned for shard in self._shards):
            raise DataError(
                f"{self.root} was made without captions; make it anew, in another folder, with tools/cache_latents.py "
                "TOKENIZER DATA OUT --caption auto, or latent_cache.caption='auto' of a training that makes its own"
            )
        if is_first_of_node():
            for error in damaged([shard.path for shard in self._shards]).values():
                raise error
        self._ends = np.cumsum([shard.images for shard in self._shards])
        self._begins = self._ends - [shard.images for shard in self._shards]
        self.labels = np.concatenate([shard.labels for shard in self._shards])
        check_labels(f"{self.root}: the labels", self.labels, self.class_names, _CURE)
        self.source_index = np.concatenate([shard.index for shard in self._shards])
        self.captions = None if caption is None else Captions.joined([shard.captions for shard in self._shards])
        self._mean, self._std = self.statistics.tensors()
        self._flips: dict[int, npt.NDArray[np.uint8]] = {}
        self._mapped: dict[int, MappedRows | PairedRows] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_flips": {}, "_mapped": {}}

    def __len__(self) -> int:
        return self.manifest.images

    @cached_property
    def listing(self) -> Listing:
        """Which shards the cache has now, by their checksums, and which classes are in each."""
        shards = self._shards
        sums = [next(iter(promised(shard.path).values()), "0")[:15] for shard in shards]
        return Listing(
            names=hashes(shard.path.name for shard in shards),
            sizes=np.array([shard.bytes for shard in shards], dtype=np.int64),
            marks=np.array([int(digest, 16) for digest in sums], dtype=np.int64),
            labels=np.array([zlib.crc32(shard.labels.tobytes()) for shard in shards], dtype=np.int64),
            sampled=np.zeros(0, dtype=np.int64),
            digests=np.zeros(0, dtype=np.int64),
            class_names=self.class_names,
            by_content=True,
            unit="shards",
        )

    def normalise_as(self, statistics: LatentStatistics) -> None:
        """Normalise by other statistics than the cache's own: those a generator was trained with on other images."""
        self.statistics = statistics
        self._mean, self._std = statistics.tensors()

    def denormalise(self, latents: Tensor) -> Tensor:
        """Turn normalised latents (..., C, h, w) into those that the tokenizer decodes, float32."""
        return self.statistics.denormalise(latents)

    def __getitem__(self, request: SampleIndex | int) -> dict[str, Any]:
        return self.__getitems__([request])[0]

    def __getitems__(self, requests: Sequence[SampleIndex | int]) -> list[dict[str, Any]]:
        """Return the items of a batch, views of one tensor; a DataLoader asks for a batch this way."""
        batch = self.batch(requests)
        columns = {"latents": batch["latents"].unbind()}
        columns |= {name: batch[name].tolist() for name in ("label", "index")}
        columns |= {"caption": batch["caption"]} if "caption" in batch else {}
        return _Items(batch, (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)))

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of items: what default_collate gives, without a copy where they came together."""
        return items.batch if isinstance(items, _Items) else default_collate(items)

    def batch(self, requests: Sequence[SampleIndex | int]) -> dict[str, Any]:
        """Return a collated batch: latents float32 (N, C, h, w), label and index int64 (N,), captions a list."""
        places = range(len(self))
        asked = [r if isinstance(r, SampleIndex) else SampleIndex(places[r], places[r]) for r in requests]
        index = np.array([places[request.index] for request in asked], dtype=np.int64)
        latents = self._gather(index, [self._is_mirrored(request.sample_number) for request in asked])
        if self.normalise:
            latents.sub_(self._mean).div_(self._std)  # its own memory: see LatentStatistics.normalise for the formula
        labels = torch.from_numpy(self.labels[index].astype(np.int64))
        batch: dict[str, Any] = {"latents": latents, "label": labels, "index": torch.from_numpy(index)}
        if self.captions is not None:
            drawn = [r.sample_number if self.train and isinstance(r, SampleIndex) else None for r in requests]
            picked = zip(index.tolist(), drawn, strict=True)
            batch["caption"] = [self.captions.pick(i, self.seed, sample) for i, sample in picked]
        return batch

    def _gather(self, index: npt.NDArray[np.int64], mirrored: Sequence[int]) -> Tensor:
        shards = np.searchsorted(self._ends, index, side="right")
        rows = (index - self._begins[shards]) * self.manifest.copies + np.asarray(mirrored, dtype=np.int64)
        wanted = [*zip(shards.tolist(), rows.tolist(), strict=True)]
        for shard, row in wanted:
            self._rows_of(shard).will_need(row)
        dtype = DTYPES[self.manifest.encoding["dtype"]]
        bits = np.uint16 if dtype.itemsize == 2 else np.float32
        gathered = np.empty((len(wanted), math.prod(self.latent_shape)), bits)
        for place, (shard, row) in enumerate(wanted):  # quicker than shard by shard: a batch has a few rows of each
            gathered[place] = self._rows_of(shard).array[row]
        return torch.from_numpy(gathered).view(dtype).float().view(-1, *self.latent_shape)

    def _rows_of(self, shard: int) -> MappedRows | PairedRows:
        if shard not in self._mapped:
            if len(self._mapped) >= _MOST_MAPPED:
                self._mapped.clear()
            self._mapped[shard] = self._shards[shard].map_latents()
        return self._mapped[shard]

    def _is_mirrored(self, sample_number: int) -> int:
        if not (self.train and self.hflip):
            return 0
        block, place = divmod(sample_number, _FLIPS_AT_ONCE)
        if block not in self._flips:
            if len(self._flips) > 1:
                self._flips.clear()
            self._flips[block] = rng("sample", self.seed, block).integers(2, size=_FLIPS_AT_ONCE, dtype=np.uint8)
        return int(self._flips[block][place])


def _open_shards(root: Path, manifest: Manifest) -> list[Shard]:
    """Open every shard with something in it. Raises DataError for one that is missing or not of the manifest."""
    shards = []
    for entry in manifest.shards:
        shard = Shard(inside(root, entry["file"], DataError, _CURE))
        if (shard.images, shard.bytes) != (entry["images"], entry["bytes"]):
            raise DataError(
                f"{shard.path} is not the shard of the manifest: {shard.images} images in {shard.bytes} bytes, not "
                f"{entry['images']} in {entry['bytes']}; {_CURE}"
            )
        if not shard.images:
            continue
        found = TYPES.get(shard.dtype), (*shard.latent_shape,), shard.copies
        said = manifest.encoding["dtype"], (*manifest.latent_shape,), manifest.copies
        if found != said:
            kinds = (f"{shape} of {dtype}, {copies} of each image" for dtype, shape, copies in (found, said))
            raise DataError(f"{shard.path} is not the shard of the manifest: latents {', not '.join(kinds)}; {_CURE}")
        shards.append(shard)
    if (in_all := sum(shard.images for shard in shards)) != manifest.images:
        raise DataError(f"{root}: its manifest says {manifest.images:,} images, and {in_all:,} of its shards; {_CURE}")
    return shards
