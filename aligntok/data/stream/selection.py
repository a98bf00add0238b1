"""Which samples of an index are taken, and what each is cropped to: found once, kept beside the index, then mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aligntok.data.buckets import UNREADABLE, AspectBuckets
from aligntok.data.filters import BlockedDomains, Filter
from aligntok.data.index import Index
from aligntok.data.index.format import DOMAIN
from aligntok.data.settings import Wanted
from aligntok.distributed.job import batched, progress_bar
from aligntok.errors import ConfigError, DataError
from aligntok.io.arrays import map_column
from aligntok.io.console import print_line, print_table
from aligntok.io.files import read_json, reading, replacing, write_checksums, write_json, writing
from aligntok.io.folders import replacing_folder, taking_turns

logger = logging.getLogger("aligntok.data")

Int64s = npt.NDArray[np.int64]
#: Consecutive samples of a shard that are read together; a shard's last block may be smaller.
BLOCK = 64
#: The folder in an index, the files of a selection in a folder of it.
SELECTIONS, DESCRIPTION, BUCKETS, COUNTS = "selections", "selection.json", "buckets.npy", "counts.npy"
_FORMAT = 1
_AT_ONCE = 1 << 14  # blocks
_COARSE = 1 << 10
_CURE = "remove that folder, and it is made again"
_HOLD_OUT = np.uint64(0x9E3779B97F4A7C15)


class Blocks:
    """The samples of an index in blocks: which samples block b has, of which shard. first: as a ShardTable's."""

    def __init__(self, first: Int64s) -> None:
        self._samples = first
        self._first = np.concatenate([np.zeros(1, np.int64), np.cumsum(-(-np.diff(first) // BLOCK))])
        self.number = int(self._first[-1])

    def ranges(self, blocks: Int64s) -> tuple[Int64s, Int64s]:
        """Return the first sample of each block, and the one after its last, (n,) each."""
        shards = np.searchsorted(self._first, blocks, side="right") - 1
        begins = self._samples[shards] + (blocks - self._first[shards]) * BLOCK
        return begins, np.minimum(begins + BLOCK, self._samples[shards + 1])

    def of(self, samples: Int64s) -> Int64s:
        """Return the block of each sample."""
        shards = np.searchsorted(self._samples, samples, side="right") - 1
        return np.asarray(self._first[shards] + (samples - self._samples[shards]) // BLOCK)


@dataclass(eq=False)
class Selection:
    """The samples of an index that pass, and the bucket of each.

    buckets: (samples,) uint8, UNREADABLE for those that do not pass; counts: (blocks, buckets) uint8; both stay on
    disk. sizes: (H, W) of each bucket; totals: (buckets,); passed: how many pass each condition by itself. `digest`
    tells selections apart, that of the index in it.
    """

    index: Index
    folder: Path
    digest: str
    buckets: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.uint8]
    sizes: list[tuple[int, int]]
    totals: Int64s
    passed: dict[str, int]

    def __len__(self) -> int:
        return int(self.totals.sum())

    def __reduce__(self) -> tuple[Any, ...]:
        return _read, (self.index, self.folder, self.digest)

    @cached_property
    def blocks(self) -> Blocks:
        """Where the blocks lie."""
        return Blocks(self.index.shards.first)

    def members(self, blocks: Int64s) -> tuple[Int64s, npt.NDArray[np.uint8]]:
        """Return the samples of some blocks that pass, in that order, and the bucket of each."""
        begins, ends = self.blocks.ranges(blocks)
        samples = begins[:, None] + np.arange(BLOCK)
        samples = samples[samples < ends[:, None]]
        buckets = self.buckets[samples]
        kept = buckets < len(self.totals)
        return samples[kept], buckets[kept]

    def nth(self, place: int, bucket: int | None = None) -> int:
        """Return the sample at a place among those that pass, in the index's order; of a `bucket` alone if given."""
        coarse = self._coarse.sum(axis=1) if bucket is None else self._coarse[:, bucket]
        part = int(np.searchsorted(coarse, place, side="right")) - 1
        counts = self.counts[part * _COARSE : (part + 1) * _COARSE]
        ends = np.cumsum(counts.sum(axis=1, dtype=np.int64) if bucket is None else counts[:, bucket], dtype=np.int64)
        place -= int(coarse[part])
        row = int(np.searchsorted(ends, place, side="right"))
        samples, buckets = self.members(np.array([part * _COARSE + row]))
        own = samples if bucket is None else samples[buckets == bucket]
        return int(own[place - (int(ends[row - 1]) if row else 0)])

    @cached_property
    def _coarse(self) -> Int64s:
        """How many samples of each bucket come before every so-manieth block."""
        sums = np.add.reduceat(self.counts, np.arange(0, len(self.counts), _COARSE), axis=0, dtype=np.int64)
        return np.concatenate([np.zeros((1, sums.shape[1]), np.int64), np.cumsum(sums, axis=0)])


def select(index: Index, wanted: Wanted, other_folder: Path | None = None) -> Selection:
    """Return the selection of an index, which is made where there is none yet; in `other_folder` where the index's
    cannot be written. Of several processes that ask for one, one makes it, and the others wait.

    Raises ConfigError for a condition that asks for other columns than there are, and when nothing passes.
    """
    shapes = AspectBuckets(wanted.image_size)
    rules = _Rules(index, wanted, shapes)
    digest = rules.digest()
    folders = [index.folder / SELECTIONS, other_folder or Path(tempfile.gettempdir()) / f"aligntok-{os.getuid()}"]
    if folders[1].exists() and folders[1].stat().st_uid != os.getuid():
        folders.pop()  # whose it is may have put anything in it
    for place in folders:
        if (place / digest[:16] / DESCRIPTION).is_file():
            return _read(index, place / digest[:16], digest)
    place = next((each for each in folders if _can_write(each)), folders[0])
    with writing(place):
        place.mkdir(0o777 if place == folders[0] else 0o700, parents=True, exist_ok=True)
    with taking_turns(place / f".{digest[:16]}.lock"):
        if not (place / digest[:16] / DESCRIPTION).is_file():
            _make(index, rules, place / digest[:16], digest)
    return _read(index, place / digest[:16], digest)


def print_selection(selection: Selection) -> None:
    """Print how many samples pass each condition by itself, how many all, and of which shape these are."""
    number = len(selection.index)

    def row(what: str, found: int) -> list[str]:
        return [what, f"{found:,}", f"{100 * found / number:.2f} %"]

    shapes = zip(selection.sizes, selection.totals.tolist(), strict=True)
    conditions = [row(text, found) for text, found in selection.passed.items()]
    of_each = [row(f"cropped to {height} x {width}", found) for (height, width), found in shapes]
    rows = [*conditions, None, row("all of these", len(selection)), *of_each]
    print_table(f"Samples of {number:,}", ["", "samples", "share"], rows)
    print_line(f"Selection: {selection.folder}")


def _can_write(folder: Path) -> bool:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return os.access(there, os.W_OK | os.X_OK)


class _Rules:
    """What decides about each sample of an index."""

    def __init__(self, index: Index, wanted: Wanted, shapes: AspectBuckets) -> None:
        self.index, self.wanted, self.shapes = index, wanted, shapes
        self.filter = None if wanted.where is None else Filter(wanted.where)
        self.blocked = None if wanted.blocked_domains is None else BlockedDomains(wanted.blocked_domains)
        if self.filter is not None:
            self.filter.check(index.columns)
        if self.blocked is not None and DOMAIN not in index.columns:
            raise ConfigError(f"blocked_domains: {index.folder} has no column '{DOMAIN}'; make an index with it")
        if wanted.captioned and index.caption is None:
            raise ConfigError(f"{index.folder} has no captions; make an index of shards that have some")
        if wanted.held_out and wanted.fraction is None:
            raise ConfigError("held_out=True takes the samples that a fraction holds out; give fraction=, such as 0.01")

    def digest(self) -> str:
        """Return 64 hexadecimal digits, others for anything that another selection would come of."""
        wanted, blocked = self.wanted, b"" if self.blocked is None else self.blocked.hashes.tobytes()
        told = [
            *(_FORMAT, BLOCK, self.index.digest, self.filter and self.filter.text, hashlib.sha256(blocked).hexdigest()),
            *(self.shapes.sizes, wanted.max_aspect_ratio, wanted.captioned, wanted.fraction, wanted.held_out),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def decide(self, first: int, last: int) -> tuple[npt.NDArray[np.uint8], dict[str, int]]:
        """Return the buckets of the samples from `first` to before `last`, and how many pass each condition."""
        index, wanted = self.index, self.wanted
        rows = slice(first, last)
        heights, widths = (np.asarray(index.column(name)[rows]) for name in ("height", "width"))
        passes = {"can be read": (heights > 0) & (widths > 0)}
        longer, shorter = np.maximum(heights, widths), np.minimum(heights, widths)
        passes[f"sides at most 1 : {wanted.max_aspect_ratio:g}"] = longer <= wanted.max_aspect_ratio * shorter
        if self.filter is not None:
            columns = {name: np.asarray(index.column(name)[rows]) for name in self.filter.columns}
            passes |= {text: verdict(columns) for text, verdict in self.filter.parts()}
        if self.blocked is not None:
            passes["host is not blocked"] = self.blocked.passes(np.asarray(index.column(DOMAIN)[rows]))
        if wanted.captioned:
            passes["has a caption"] = np.asarray(index.column("caption_size")[rows]) > 0
        if wanted.fraction is not None:
            held = _held_out(np.arange(first, last), wanted.fraction)
            passes["held out" if wanted.held_out else "not held out"] = held == wanted.held_out
        kept = np.flatnonzero(np.logical_and.reduce([*passes.values()]))
        buckets = np.full(last - first, UNREADABLE, dtype=np.uint8)
        buckets[kept] = self.shapes.nearest_of(heights[kept], widths[kept])
        return buckets, {text: int(flags.sum()) for text, flags in passes.items()}


def _held_out(samples: Int64s, fraction: float) -> npt.NDArray[np.bool_]:
    """Tell which samples are held out: those of which a hash of the number is small. Samples after them change none."""
    mixed = (samples.astype(np.uint64) + np.uint64(1)) * _HOLD_OUT
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) < np.uint64(fraction * 2**64)


def _make(index: Index, rules: _Rules, folder: Path, digest: str) -> None:
    """Decide about every sample, and write what comes of it. Raises WriteError, and ConfigError when nothing passes."""
    blocks, shapes = Blocks(index.shards.first), len(rules.shapes)
    totals, passed = np.zeros(shapes, dtype=np.int64), dict[str, int]()
    with replacing_folder(folder, last=DESCRIPTION) as made:
        with (
            replacing(made / BUCKETS) as one,
            one.open("wb") as all_buckets,
            replacing(made / COUNTS) as other,
            other.open("wb") as all_counts,
        ):
            for file, number in ((all_buckets, len(index)), (all_counts, blocks.number * shapes)):
                head = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": (number,)}
                np.lib.format.write_array_header_1_0(file, head)
            for buckets, counts, found in _decided(rules, blocks):
                all_buckets.write(buckets.tobytes())
                all_counts.write(counts.tobytes())
                totals += counts.sum(axis=0, dtype=np.int64)
                passed = {text: passed.get(text, 0) + number for text, number in found.items()}
        if not totals.any():
            told = ", ".join(f"{text}: {number:,}" for text, number in passed.items())
            raise ConfigError(f"{index.folder}: not one of {len(index):,} samples passes ({told}); ask for less")
        said = {"format": _FORMAT, "digest": digest, "sizes": rules.shapes.sizes, "where": rules.wanted.where}
        write_json(made / DESCRIPTION, {**said, "totals": totals.tolist(), "passed": passed})
        write_checksums(made, [BUCKETS, COUNTS, DESCRIPTION])


def _decided(
    rules: _Rules, blocks: Blocks
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], dict[str, int]]]:
    """Yield buckets, counts, and how many pass each condition, of the samples in order, a part at a time."""
    shapes, threads = len(rules.shapes), os.cpu_count() or 1

    def decide(part: range) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], dict[str, int]]:
        begins, ends = blocks.ranges(np.arange(part.start, part.stop))
        buckets, passed = rules.decide(int(begins[0]), int(ends[-1]))
        cells = np.repeat(np.arange(len(part)), ends - begins) * shapes + buckets
        counts = np.bincount(cells[buckets != UNREADABLE], minlength=len(part) * shapes)
        return buckets, counts.reshape(-1, shapes).astype(np.uint8), passed

    with (
        ThreadPoolExecutor(threads) as pool,
        progress_bar(len(rules.index), "selecting samples", "sample") as bar,
    ):
        for few in batched(batched(range(blocks.number), _AT_ONCE), 2 * threads):
            for decided in pool.map(decide, few):
                yield decided
                bar.update(len(decided[0]))


def _read(index: Index, folder: Path, digest: str) -> Selection:
    """Open a selection. Raises DataError for one that is damaged, or of something else."""

    def parse(content: dict[str, Any]) -> tuple[list[tuple[int, int]], Int64s, dict[str, int]]:
        if content["format"] != _FORMAT or content["digest"] != digest:
            raise ValueError("it is of another index, another condition or another version")
        sizes = [(int(height), int(width)) for height, width in content["sizes"]]
        passed = {str(text): int(number) for text, number in content["passed"].items()}
        return sizes, np.array([int(total) for total, _ in zip(content["totals"], sizes, strict=True)]), passed

    sizes, totals, passed = read_json(folder / DESCRIPTION, DataError, _CURE, parse)
    number = Blocks(index.shards.first).number
    with reading(folder / BUCKETS, DataError, _CURE):
        buckets = map_column(folder / BUCKETS, "u1", len(index))
    with reading(folder / COUNTS, DataError, _CURE):
        counts = map_column(folder / COUNTS, "u1", number * len(totals)).reshape(number, len(totals))
        if (counts.sum(axis=0, dtype=np.int64) != totals).any():
            raise ValueError(f"{COUNTS} does not add up to {DESCRIPTION}")
    return Selection(index, folder, digest, buckets, counts, sizes, totals, passed)
