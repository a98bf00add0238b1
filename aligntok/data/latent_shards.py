"""The files of a latent cache: shards in safetensors, and a manifest that is written last.

A cache is a folder of plain files, of which none can run code::

    cache/
      encoding.json               how the images are encoded; written first, so that a second start does the same
      shard_00000.safetensors     the images at the first `shard_size` places of the data set, and so on:
        latents   (n, copies, C, h, w)  float32, bfloat16 or float16, not normalised; copy 1 is of the mirrored image
        labels    (n,)                  int32; -1 without a class
        index     (n,)                  int64; the image's place in the data set
        mean, m2  (C,)                  float64; mean of each channel, and sum of squared deviations from it
        captions, caption_ends, caption_counts   uint8 text, int64: where each ends, how many an image has; if asked for
        and, in the file's metadata, the images that could not be read and are left out
      shard_00000.safetensors.sha256   its checksum, as `sha256sum --check` reads it
      listing.npz                 which images they are: names, sizes, times or checksums, classes
      manifest.json               everything of encoding.json, the number of images, the statistics of all latents,
                                  names of classes, the images left out, each shard's length in images and bytes
      checksums.json              the SHA-256 of encoding.json and manifest.json

A shard is whole or absent: it is written beside its place and renamed. A cache with a manifest is finished. The
statistics, of every latent in the cache as it is stored, are merged from the shards' own in float64. In the layout of
:mod:`aligntok.data.lightningdit` the copies are two tensors, latents and latents_flip (n, C, h, w), and labels int64.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aligntok.data.captions import KEPT, Captions
from aligntok.device import DTYPES
from aligntok.distributed.job import progress_bar
from aligntok.errors import DataError
from aligntok.io.arrays import MappedRows, PairedRows
from aligntok.io.files import check_file, read_json, reading, regular, save_tensors

FORMAT = 1
ENCODING, MANIFEST = "encoding.json", "manifest.json"
Float64s = npt.NDArray[np.float64]

# numpy has no bfloat16: what has 16 bits is read as bits, and torch is told what they are.
_NUMPY_DTYPES = {"F32": "<f4", "F16": "<u2", "BF16": "<u2", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1"}
_TENSORS = ("latents", "labels", "index", "mean", "m2")
HALVES = ("latents", "latents_flip")
_CURE = "copy the cache again, or start the command that made it: it encodes what is missing"
_THREADS = 8
_ROWS_AT_ONCE = 256  # of a shard, when its statistics are taken: a float64 copy of so many is made


@dataclass(frozen=True)
class Moments:
    """Number of values of each channel, their mean, and the sum of squared deviations from it; (C,) float64."""

    count: int
    mean: Float64s
    m2: Float64s

    @classmethod
    def of(cls, latents: Tensor) -> Moments:
        """Return the moments of the channels of latents (N, C, h, w). The order of sums does not depend on threads."""
        values = latents.double().flatten(2).numpy()
        if not values.size:
            return cls(0, np.zeros(latents.shape[1]), np.zeros(latents.shape[1]))
        mean = values.mean(axis=(0, 2))
        return cls(len(values) * values.shape[2], mean, np.square(values - mean[:, None]).sum(axis=(0, 2)))

    @classmethod
    def merged(cls, parts: Sequence[Moments]) -> Moments:
        """Return the moments of one or more parts together (Chan, Golub and LeVeque 1979); their order is no matter."""
        filled = [part for part in parts if part.count]
        count = sum(part.count for part in filled)
        if not count:
            return parts[0]
        mean = _exact_sum([part.mean * part.count for part in filled]) / count
        m2 = _exact_sum([array for part in filled for array in (part.m2, part.count * (part.mean - mean) ** 2)])
        return cls(count, mean, m2)


def _exact_sum(arrays: Sequence[Float64s]) -> Float64s:
    return np.array([math.fsum(column) for column in np.stack(arrays, axis=1)])


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each latent channel; a denoiser sees latents normalised by them.

    `asdict` gives what a checkpoint or a manifest keeps, and ``LatentStatistics(**that)`` gives it back.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:  # JSON has only lists
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))

    @classmethod
    def of(cls, moments: Moments) -> LatentStatistics:
        """Return the statistics of moments; the deviation is that of the very values (divided by their number)."""
        return cls(tuple(moments.mean.tolist()), tuple(np.sqrt(moments.m2 / moments.count).tolist()))

    def normalise(self, latents: Tensor) -> Tensor:
        """Return (latents - mean) / std in float32; latents (..., C, h, w) of any float type and device."""
        mean, std = self.tensors(latents.device)
        return (latents.float() - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        """Return latents * std + mean in float32, which a tokenizer decodes; latents (..., C, h, w)."""
        mean, std = self.tensors(latents.device)
        return latents.float() * std + mean

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation as float32 (C, 1, 1)."""
        mean, std = torch.tensor([self.mean, self.std], dtype=torch.float32, device=device)[..., None, None]
        return mean, std


class Skipped(NamedTuple):
    """An image that could not be read: its place in the data set, its name, and the kind of error."""

    place: int
    name: str
    error: str


def shard_path(folder: Path, number: int, layout: str = "aligntok") -> Path:
    """Return where a shard lies."""
    name = f"shard_{number:05d}" if layout == "aligntok" else f"latents_rank00_shard{number:03d}"
    return folder / f"{name}.safetensors"


def write_shard(
    path: Path,
    latents: Tensor,
    labels: Tensor,
    index: Tensor,
    skipped: Sequence[Skipped],
    captions: Captions | None = None,
    layout: str = "aligntok",
) -> None:
    """Write a shard, whole or not at all.

    latents (n, copies, C, h, w) on the CPU; labels, index and captions (n,). Raises WriteError.
    """
    flat = latents.flatten(0, 1)
    moments = Moments.merged([Moments.of(rows) for rows in flat.split(_ROWS_AT_ONCE)])
    ours = layout == "aligntok"
    tensors = {
        **({"latents": latents} if ours else dict(zip(HALVES, latents.unbind(1), strict=True))),
        "labels": labels.to(torch.int32 if ours else torch.int64),
        "index": index.to(torch.int64),
        "mean": torch.from_numpy(moments.mean),
        "m2": torch.from_numpy(moments.m2),
        **({} if captions is None else {name: torch.from_numpy(each) for name, each in captions.arrays().items()}),
    }
    metadata = {"skipped": json.dumps(skipped)}  # one key: with several, their order in the file would be random
    save_tensors(
        path, tensors, metadata, "the shards that are there are whole. Make room and start the same command again"
    )


class Shard:
    """A whole shard, of which the header is read. Raises DataError when the file is missing, cut off or no shard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, DataError, _CURE), open(path, "rb", opener=regular) as file:
            self.bytes = path.stat().st_size
            self._begin = 8 + int.from_bytes(file.read(8), "little")
            if self._begin > self.bytes:
                raise ValueError("its header is cut off")
            self._header = json.loads(file.read(self._begin - 8))
            self.captioned = "captions" in self._header  # whether it keeps some
            self._halves = HALVES[: 1 + (HALVES[1] in self._header)]
            foreign = len(self._halves) > 1 and "index" not in self._header  # LightningDiT's own
            tensors = [*self._halves, *(("labels",) if foreign else _TENSORS[1:]), *(KEPT if self.captioned else ())]
            if (needed := self._begin + max(map(self._checked_end, tensors))) != self.bytes:
                raise ValueError(f"{self.bytes} bytes of {needed}")
            kinds = [[self._header[name][key] for key in ("dtype", "shape")] for name in self._halves]
            self.dtype, (self.images, *rest) = kinds[0]
            self.copies, *shape = rest if len(kinds) == 1 else (2, *rest)
            self.latent_shape: list[int] = shape
            if len(shape) != 3 or kinds[0] != kinds[-1]:
                raise ValueError(f"its latents are {', '.join(map(str, kinds))}")
            if {self._place(name)[1] for name in tensors if name in ("labels", "index")} != {self.images}:
                raise ValueError(f"it has not {self.images} labels and places for its images")

    def _checked_end(self, name: str) -> int:
        """Return where a tensor ends. Raises ValueError for one whose shape is not that of its bytes."""
        dtype, count, _ = self._place(name)
        first, end = self._header[name]["data_offsets"]
        shape = self._header[name]["shape"]
        if not (0 <= first <= end and end - first == count * dtype.itemsize and all(type(n) is int for n in shape)):
            raise ValueError(f"{name} declares {shape} in {end - first} bytes")
        return int(end)

    def map_latents(self) -> MappedRows | PairedRows:
        """Map the latents into memory, as (n * copies, C h w). The shard must have some."""
        rows, width = self.images * self.copies // len(self._halves), math.prod(self.latent_shape)
        mapped = [MappedRows(self.path, *self._place(name)[::2], rows, width) for name in self._halves]
        return mapped[0] if len(mapped) == 1 else PairedRows(mapped)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The class of each image, (n,)."""
        return self._read("labels")

    @property
    def index(self) -> npt.NDArray[np.int64]:
        """The place of each image in the data set that was encoded, (n,); in the shard, where it does not say."""
        return self._read("index") if "index" in self._header else np.arange(self.images)

    @property
    def captions(self) -> Captions:
        """The captions of each image, where it keeps them. Raises DataError for what are none."""
        with reading(self.path, DataError, _CURE):
            found = Captions.of_arrays({name: self._read(name) for name in KEPT})
            if len(found) != self.images:
                raise ValueError(f"it has captions of {len(found)} images, not of {self.images}")
            return found

    @property
    def skipped(self) -> list[Skipped]:
        """The images of this shard's places that could not be read."""
        return [Skipped(*found) for found in json.loads(self._header["__metadata__"]["skipped"])]

    @property
    def moments(self) -> Moments:
        """The moments of all latents of the shard."""
        count = self.images * self.copies * math.prod(self.latent_shape[1:])
        return Moments(count, self._read("mean"), self._read("m2"))

    def _place(self, name: str) -> tuple[np.dtype[Any], int, int]:
        entry = self._header[name]
        place = self._begin + entry["data_offsets"][0]
        return np.dtype(_NUMPY_DTYPES[entry["dtype"]]), math.prod(entry["shape"]), place

    def _read(self, name: str) -> npt.NDArray[Any]:
        dtype, count, begin = self._place(name)
        return np.fromfile(self.path, dtype, count, offset=begin)


def damaged(paths: Sequence[Path]) -> dict[Path, DataError]:
    """Return what is wrong with shards that are not what their checksums are of; each is read once a start."""

    def look(path: Path) -> DataError | None:
        try:
            check_file(path, DataError, "remove it and start the command that made the cache again, which encodes it")
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(paths), "checking shards", "shard") as bar:
        found: dict[Path, DataError] = {}
        for path, error in zip(paths, pool.map(look, paths), strict=True):
            bar.update()
            found |= {} if error is None else {path: error}
    return found


@dataclass(frozen=True)
class Manifest:
    """What a finished cache says of itself; see the module for the meaning of its files.

    `encoding` is what encoding.json holds; `shards` has ``dict(file=, images=, bytes=)`` each.
    """

    encoding: Mapping[str, Any]
    images: int
    latent_shape: tuple[int, int, int]
    statistics: LatentStatistics
    class_names: tuple[str, ...]
    shards: Sequence[Mapping[str, Any]]
    skipped: Sequence[Skipped]

    @property
    def copies(self) -> int:
        """2 with a mirrored copy of each image, else 1."""
        return 2 if self.encoding["hflip"] else 1

    def as_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {**asdict(self), "skipped": [found._asdict() for found in self.skipped]}


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a finished cache.

    Raises DataError for no cache, an unfinished one, or a manifest that is damaged, of another version, or without
    statistics.
    """
    path = Path(folder) / MANIFEST
    if not path.with_name(ENCODING).is_file() and not path.is_file():
        raise DataError(
            f"no latent cache in {folder}: it has no {MANIFEST}; make one by tools/cache_latents.py TOKENIZER DATA OUT"
        )
    if not path.is_file():
        whole = len(list(path.parent.glob("shard_*.safetensors")))
        raise DataError(
            f"the latent cache in {folder} is not finished ({whole} shards are there, {MANIFEST} is not); "
            "start the command that makes it again: it goes on from there"
        )

    def parse(content: dict[str, Any]) -> Manifest:
        encoding = content["encoding"]
        if encoding["format"] != FORMAT:
            raise ValueError(f"its format is {encoding['format']}, this version reads {FORMAT}")
        if not isinstance(encoding["tokenizer"]["identity"], str) or encoding["dtype"] not in DTYPES:
            raise ValueError("its encoding names no tokenizer, or no type of numbers")
        _ = encoding["hflip"], encoding["tokenizer"]["source"]  # who opens the cache needs them
        return Manifest(
            encoding,
            int(content["images"]),
            tuple(content["latent_shape"]),
            checked_statistics(path, content.get("statistics"), content["latent_shape"][0]),
            tuple(content["class_names"]),
            [{"file": s["file"], "images": int(s["images"]), "bytes": int(s["bytes"])} for s in content["shards"]],
            [Skipped(**found) for found in content["skipped"]],
        )

    cure = "remove that file and start the command that made the cache again: it writes the file anew"
    check_file(path, DataError, cure)  # all latents are normalised by what it says
    return read_json(path, DataError, cure, parse)


def checked_statistics(path: Path, given: Any, channels: int) -> LatentStatistics:
    """Return statistics in a file, `mean` and `std`. Raises DataError unless they are of so many channels."""
    try:
        found = LatentStatistics(given["mean"], given["std"])
        sound = all(map(math.isfinite, (*found.mean, *found.std))) and min(found.std) > 0
        if sound and len(found.mean) == len(found.std) == channels:
            return found
        problem = f"they are not {channels} numbers each, deviations above 0"
    except (KeyError, TypeError, ValueError) as error:
        problem = repr(error)
    raise DataError(
        f"{path} has no mean and standard deviation of the {channels} latent channels ({problem}), and latents must be "
        "normalised by them; remove that file and start the command that made the cache again: it writes the file anew"
    )
