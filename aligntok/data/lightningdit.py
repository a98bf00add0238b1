"""LightningDiT's folders of latents: shards of images with their mirrored copies, and statistics.

    latents_rank00_shard000.safetensors   latents, latents_flip (n, C, h, w); labels (n,) int64
    latents_stats.pt                      mean, std (1, C, 1, 1): a pickle, of which nothing but tensors is read

A cache of ours in this layout has, beside these, what ours has: a manifest, and in shards places and moments.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aligntok.data.latent_shards import (
    ENCODING,
    FORMAT,
    MANIFEST,
    LatentStatistics,
    Manifest,
    Shard,
    checked_statistics,
    read_manifest,
)
from aligntok.errors import DataError
from aligntok.io.arrays import check_stored, why_unread
from aligntok.io.files import read_bytes, reading, replacing

#: Types of latents, by what they are called in a shard.
TYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
STATISTICS = "latents_stats.pt"
PATTERN = "latents_rank*_shard*.safetensors"
_MOST_STATISTICS = 1 << 20  # bytes of the file
_CURE = "copy the folder again, whole"


def open_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a cache; of a folder that LightningDiT filled, which has none, make what it would say.

    That has no identity of a tokenizer, as nobody knows which made it. Raises DataError as :func:`read_manifest`
    does, and for shards or statistics that are missing, damaged, or do not fit one another.
    """
    root = Path(folder)
    ours = any((root / name).is_file() for name in (ENCODING, MANIFEST))
    paths = [] if ours else sorted(root.glob(PATTERN))  # in the order that LightningDiT reads them in
    if not paths:
        return read_manifest(root)
    shards = [Shard(path) for path in paths]
    kinds = {(shard.dtype, (*shard.latent_shape,)): shard.path.name for shard in shards}
    (dtype, shape), *others = kinds
    if others or dtype not in TYPES:
        told = "; ".join(f"{name}: {kind[0]} {kind[1]}" for kind, name in kinds.items())
        raise DataError(f"{root}: latents must be of one shape, and of one type, {', '.join(TYPES)}; {told}")
    return Manifest(
        encoding={"format": FORMAT, "tokenizer": {"identity": "", "source": ""}, "dtype": TYPES[dtype], "hflip": True},
        images=sum(shard.images for shard in shards),
        latent_shape=(shape[0], shape[1], shape[2]),
        statistics=_read_statistics(root / STATISTICS, shape[0]),
        class_names=(),
        shards=[{"file": s.path.name, "images": s.images, "bytes": s.bytes} for s in shards],
        skipped=[],
    )


def _read_statistics(path: Path, channels: int) -> LatentStatistics:
    cure = "LightningDiT writes it at its first start with the folder"
    with reading(path, DataError, cure):
        content = read_bytes(path, _MOST_STATISTICS)
        check_stored(path)
        try:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise whatever torch's reader happens to
            raise ValueError(why_unread(error)) from error
        if not isinstance(found, Mapping) or any(not isinstance(found[name], torch.Tensor) for name in ("mean", "std")):
            raise ValueError("it holds no tensors mean and std")
        given: dict[str, Any] = {name: found[name].double().flatten().tolist() for name in ("mean", "std")}
    return checked_statistics(path, given, channels)


def write_statistics(folder: Path, statistics: LatentStatistics) -> None:
    """Write mean and deviation where LightningDiT looks for them. Raises WriteError."""
    mean, std = (tensor[None] for tensor in statistics.tensors())
    content = io.BytesIO()
    torch.save({"mean": mean, "std": std}, content)  # of a file the archive would have the name
    with replacing(folder / STATISTICS, checksum=True) as temporary:
        temporary.write_bytes(content.getvalue())
