"""A cache of texts: what text encoders give for each different text of a data set, encoded once into a folder.

Of plain files, of which none can run code::

    cache/
      texts.json                  by which encoders, of which texts, stored how; written first
      shard_00000.safetensors     `shard_size` texts, in the order of their SHA-256:
        rows      (R, D)          fp16, bf16 or fp32: the rows of all its texts, one text after the other, no padding
        offsets   (n + 1,)        int64; text i has the rows from offsets[i] up to offsets[i + 1]
        hashes    (n, 32)         uint8; the SHA-256 of each text, of UTF-8
        pooled    (n, P)          as rows; where there is an encoder for it
      shard_00000.safetensors.sha256
      manifest.json               the same as texts.json, and each shard's length in texts and bytes; written last
      checksums.json              the SHA-256 of texts.json and manifest.json

The text "", which a generator is guided away from, is always among them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aligntok.data.latent_shards import MANIFEST, damaged, shard_path
from aligntok.device import DTYPES, device, explaining_out_of_memory
from aligntok.distributed import is_first, is_first_of_node
from aligntok.distributed.job import batched, shares
from aligntok.distributed.output_folder import found_by_first, output_folder
from aligntok.errors import ConfigError, DataError, Preempted, at_least, unknown
from aligntok.io.checksums import CHECKSUMS
from aligntok.io.files import (
    check_file,
    inside,
    opened_tensors,
    read_json,
    reading,
    save_tensors,
    write_checksums,
    write_json,
    writing,
)
from aligntok.io.folders import remove_leftovers
from aligntok.text_encoders import TextEncoder, check_pooled, check_prompts, encode_both

logger = logging.getLogger("aligntok.data")
FORMAT = 1
DESCRIPTION = "texts.json"
_AGAIN = "copy the cache again, whole, or start what made it: it encodes what is missing"
_LESS = "give the text encoders precision='bf16' or fewer max_tokens, or cache_texts a lower batch_size"
_NAMES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}  # of types, in safetensors
_MOST_OPEN = 512  # shards; each holds a file descriptor, of which a process often may have 1024


def hash_of(text: str) -> bytes:
    """Return what a text is known by: its SHA-256, 32 bytes."""
    return hashlib.sha256(text.encode()).digest()


def identities_of(tokens: TextEncoder, pooled: TextEncoder | None = None) -> dict[str, str | None]:
    """Return what the texts of two encoders are known by, as :meth:`TextCache.open` takes it."""
    return {"tokens": tokens.identity, "pooled": None if pooled is None else pooled.identity}


class TextCache:
    """A finished cache of texts, mapped into memory; picklable, and safe in processes that load data."""

    def __init__(self, folder: Path, made: Mapping[str, Any], shards: Sequence[tuple[Path, Any, Any]]) -> None:
        self.folder, self.made = folder, made
        #: L of what is padded in full, D, and P or None.
        self.max_tokens, self.dim, self.pooled_dim = made["max_tokens"], made["dim"], made["pooled_dim"]
        self._paths, self._offsets = [path for path, *_ in shards], [offsets for _, offsets, _ in shards]
        self._hashes = np.concatenate([hashes for *_, hashes in shards])
        self._keys = _keys(self._hashes)
        self._ends = np.cumsum([len(hashes) for *_, hashes in shards])
        self._open: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def open(cls, folder: str | Path, identities: Mapping[str, str | None] | None = None) -> TextCache:
        """Open a finished cache. All of it is read once, to check, by one process of a machine.

        identities: those of the encoders, ``dict(tokens=, pooled=)``, that it must have been made with; None: of any.
        Raises DataError when there is none, it is not finished, damaged, or of other encoders.
        """
        folder = Path(folder).expanduser()
        made, entries = _read_manifest(folder)
        for role in ("tokens", "pooled"):
            asked, held = (identities or {}).get(role), made["identities"][role]
            if identities is not None and asked != held:
                raise DataError(
                    f"{folder} holds texts of another encoder: text.{role} is {_short(held)}, and {_short(asked)} is "
                    "asked for; encode them with that one, into another folder"
                )
        paths = [inside(folder, entry["file"], DataError, _AGAIN) for entry in entries]
        if is_first_of_node():
            for error in damaged(paths).values():
                raise error
        shards = [(path, *_look(path, made, entry)) for path, entry in zip(paths, entries, strict=True)]
        cache = cls(folder, made, shards)
        if not (cache._keys[1:] >= cache._keys[:-1]).all():
            raise DataError(f"the shards in {folder} are not in their order; {_AGAIN}")
        return cache

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, text: str) -> bool:
        return self._find(text) is not None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def get(self, texts: Sequence[str], full: bool = False) -> dict[str, Tensor]:
        """Return ``dict(text=(N, L, D), mask=(N, L) bool, pooled=(N, P))``, as the encoders gave it, float32.

        L is that of the longest of these texts, or max_tokens with `full`; pooled is there where its encoder was.
        Raises DataError for a text that is not in the cache, ConfigError for what are no texts.
        """
        places = [self._place(text) for text in check_prompts(texts, "TextCache")]
        rows = [self._mapped(shard)["rows"][slice(*self._offsets[shard][[at, at + 1]])] for shard, at in places]
        length = self.max_tokens if full else max(map(len, rows))
        found = torch.zeros(len(rows), length, self.dim)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, each in enumerate(rows):
            found[number, : len(each)], mask[number, : len(each)] = each, True
        if self.pooled_dim is None:
            return {"text": found, "mask": mask}
        pooled = torch.stack([self._mapped(shard)["pooled"][at] for shard, at in places])
        return {"text": found, "mask": mask, "pooled": pooled.float()}

    def _find(self, text: str) -> int | None:
        wanted = np.frombuffer(hash_of(text), np.uint8)
        first, end = (int(np.searchsorted(self._keys, _keys(wanted[None])[0], side)) for side in ("left", "right"))
        return next((at for at in range(first, end) if (self._hashes[at] == wanted).all()), None)

    def _place(self, text: str) -> tuple[int, int]:
        """Return (number of the shard, place in it) of a text."""
        at = self._find(text)
        if at is None:
            raise DataError(
                f"the cache of texts in {self.folder} has no {text[:60]!r}; encode the texts of this data, all of "
                "them, into another folder"
            )
        shard = int(np.searchsorted(self._ends, at, side="right"))
        return shard, at - int(self._ends[shard]) + len(self._offsets[shard]) - 1

    def _mapped(self, shard: int) -> dict[str, Tensor]:
        """Return the rows of a shard, and what is pooled, where they lie: read from disk where they are used."""
        if shard not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.clear()
            path = self._paths[shard]
            with reading(path, DataError, _AGAIN), opened_tensors(path) as file:
                names = ("rows",) if self.pooled_dim is None else ("rows", "pooled")
                self._open[shard] = {name: file.get_tensor(name) for name in names}
        return self._open[shard]


def _keys(hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the first eight bytes of each hash (n, 32) as numbers, in the same order."""
    return np.ascontiguousarray(hashes[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def _short(identity: str | None) -> str:
    return "none" if identity is None else str(identity)[:12]


def _look(path: Path, made: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return offsets (n + 1,) and hashes (n, 32) of a shard. Raises DataError when it is not what it should be."""
    with reading(path, DataError, _AGAIN), opened_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}
        dtype, n, count = _NAMES[made["dtype"]], entry["texts"], found["rows"][1][0]
        wanted = {"offsets": ("I64", [n + 1]), "hashes": ("U8", [n, 32]), "rows": (dtype, [count, made["dim"]])}
        if made["pooled_dim"] is not None:
            wanted["pooled"] = (dtype, [n, made["pooled_dim"]])
        if found != wanted or n < 1 or path.stat().st_size != entry["bytes"]:
            raise ValueError(f"of {n} texts in {entry['bytes']} bytes it holds {found}, not {wanted}")
        offsets, hashes = (file.get_tensor(name).numpy().copy() for name in ("offsets", "hashes"))
        lengths = np.diff(offsets)
        if (offsets[0], offsets[-1]) != (0, count) or not 1 <= lengths.min() <= lengths.max() <= made["max_tokens"]:
            raise ValueError(f"its texts are of {lengths.min()} to {lengths.max()} rows, to {offsets[-1]} in all")
    return offsets, hashes


def _read_manifest(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    path = folder / MANIFEST
    if not path.is_file():
        begun = (folder / DESCRIPTION).is_file()
        raise DataError(
            f"the cache of texts in {folder} is not finished; start what makes it again: it goes on from there"
            if begun
            else f"no cache of texts in {folder}: it has no {MANIFEST}; correct the path, or encode the texts"
        )

    def parse(content: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        made = content["made"]
        if made["format"] != FORMAT:
            raise ValueError(f"its format is {made['format']}, this version reads {FORMAT}")
        numbers = [made["max_tokens"], made["dim"], made["pooled_dim"] or 1]
        names = [made["identities"]["tokens"], made["identities"]["pooled"] or ""]
        sound = all(type(each) is int and each > 0 for each in numbers) and all(isinstance(each, str) for each in names)
        if not sound or made["dtype"] not in DTYPES or (made["pooled_dim"] is None) != (not names[1]):
            raise ValueError("it does not say of which encoders it is")
        if not content["shards"]:
            raise ValueError("it names no shards")
        shards = [{"file": each["file"], **{x: int(each[x]) for x in ("texts", "bytes")}} for each in content["shards"]]
        return made, shards

    cure = "remove that file and start what made the cache again: it writes the file anew"
    check_file(path, DataError, cure)
    return read_json(path, DataError, cure, parse)


class _Shard(NamedTuple):
    """A shard to be made: its file, and its texts in their order."""

    path: Path
    texts: Sequence[str]


def cache_texts(
    folder: str | Path,
    texts: Iterable[str],
    tokens: TextEncoder,
    pooled: TextEncoder | None = None,
    *,
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16",
    batch_size: int = 32,
    shard_size: int = 1024,
) -> TextCache:
    """Encode each different one of `texts`, and "", once, into `folder`, and return the cache.

    tokens: whose rows are kept; pooled: whose pooled row is, if any. Started again, it goes on where it was; of a
    finished cache it checks the files. Collective: processes share out the shards, and the files are the same however
    many they are. Encoders that were asked are on the CPU afterwards. Raises ConfigError for other texts, encoders or
    options than the folder was begun with, DataError for what is not finite in `dtype` (fp16 ends at 65504),
    WriteError, and Preempted after SIGTERM.
    """
    check_pooled(pooled)
    at_least(1, batch_size=batch_size, shard_size=shard_size)
    if dtype not in DTYPES:
        raise ConfigError(f"cache_texts: {unknown('dtype', dtype, DTYPES)}")
    by_hash = {hash_of(text): text for text in check_prompts(["", *texts], "cache_texts")}
    ordered = [by_hash[each] for each in sorted(by_hash)]
    folder = Path(folder).expanduser()
    jobs = [_Shard(shard_path(folder, i), part) for i, part in enumerate(batched(ordered, shard_size))]
    identities = identities_of(tokens, pooled)
    made = {
        "format": FORMAT,
        "identities": identities,
        "dim": tokens.dim,
        "max_tokens": tokens.max_tokens,
        "pooled_dim": None if pooled is None else pooled.pooled_dim,
        "dtype": dtype,
        "shard_size": shard_size,
        "texts": {"number": len(ordered), "digest": hashlib.sha256(b"".join(sorted(by_hash))).hexdigest()},
    }
    stopped = Preempted(
        f"stopped by SIGTERM while texts were encoded into {folder}; the shards that are there are whole, and the same "
        "command goes on from them"
    )
    with output_folder(folder, DESCRIPTION, made, _compared, "other texts, other text encoders"):
        is_left = found_by_first(partial(_begin, folder, jobs, made), len(jobs))
        left = list(compress(jobs, is_left))
        encoders = {id(each): each for each in (tokens, pooled) if each is not None and left}.values()
        for encoder in encoders:
            encoder.to(device())
        for job in shares(left, "encoding texts", stopped, lambda job: len(job.texts), "text"):
            _encode(job, tokens, pooled, dtype, batch_size)
        for encoder in encoders:  # what is trained on the cache has the device to itself
            encoder.to("cpu")
        if is_first():
            shards = [{"file": j.path.name, "texts": len(j.texts), "bytes": j.path.stat().st_size} for j in jobs]
            write_json(folder / MANIFEST, {"made": made, "shards": shards})
            write_checksums(folder, [DESCRIPTION, MANIFEST])
    return TextCache.open(folder, identities)


def _compared(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may not change between two starts."""
    texts, identities = made["texts"], made["identities"]
    told = {role: None if identities[role] is None else identities[role][:16] for role in ("tokens", "pooled")}
    return {**made, **told, "identities": None, "texts": f"{texts['number']} ({texts['digest'][:16]})"}


def _begin(folder: Path, jobs: Sequence[_Shard], made: Mapping[str, Any]) -> list[int]:
    """Return of each shard whether it is left to be encoded; a damaged one is, and told."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    left = []
    for job in jobs:
        try:
            if check_file(job.path, DataError, _AGAIN) or job.path.exists():
                _, hashes = _look(job.path, made, {"texts": len(job.texts), "bytes": job.path.stat().st_size})
                if [each.tobytes() for each in hashes] != [hash_of(text) for text in job.texts]:
                    raise DataError("it is of other texts")
        except DataError as error:
            logger.warning("%s is encoded again: it is damaged (%s)", job.path, error.__cause__ or error)
            job.path.unlink()
        left.append(int(not job.path.exists()))
    if any(left):
        for name in (CHECKSUMS, MANIFEST):  # of a cache that has lost a shard since
            (folder / name).unlink(missing_ok=True)
        write_json(folder / DESCRIPTION, made)
    return left


def _encode(job: _Shard, tokens: TextEncoder, pooled: TextEncoder | None, dtype: str, batch_size: int) -> None:
    """Encode the texts of a shard and write it. Texts of like length go together, as padding costs time."""
    rows, pools = dict[int, Tensor](), dict[int, Tensor]()
    for part in batched(sorted(range(len(job.texts)), key=lambda at: len(job.texts[at])), batch_size):
        with explaining_out_of_memory(f"{len(part)} texts", _LESS):
            found = encode_both([job.texts[at] for at in part], tokens, pooled)
        for number, at in enumerate(part):
            rows[at] = _stored(found["text"][number][found["mask"][number]], dtype, job.texts[at])
            if pooled is not None:
                pools[at] = _stored(found["pooled"][number], dtype, job.texts[at])
    offsets = torch.tensor([0, *(len(rows[at]) for at in range(len(job.texts)))]).cumsum(0)
    hashes = torch.tensor([list(hash_of(text)) for text in job.texts], dtype=torch.uint8)
    tensors = {"rows": torch.cat([rows[at] for at in sorted(rows)]), "offsets": offsets, "hashes": hashes}
    if pooled is not None:
        tensors["pooled"] = torch.stack([pools[at] for at in sorted(pools)])
    cure = "the shards that are there are whole. Make room and start the same command again"
    save_tensors(job.path, tensors, cure=cure)


def _stored(value: Tensor, dtype: str, text: str) -> Tensor:
    """Return numbers on the CPU, as they are stored. Raises DataError where they are not finite so."""
    stored = value.to(DTYPES[dtype]).cpu()
    if not stored.isfinite().all():
        raise DataError(
            f"what the text encoder gives for {text[:60]!r} is not finite as {dtype} (it goes up to "
            f"{float(value.abs().max()):.3g}, and fp16 ends at 65504); take dtype='bf16' or 'fp32', in a config "
            "generator.text.cache='bf16' or 'fp32'. If it is not finite in fp32 either, the text encoder is broken"
        )
    return stored
