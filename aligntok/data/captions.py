"""Captions of images: every one of every image, packed into one block of memory, and which one a sample is given."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from aligntok.rng import rng

#: What finds the place of the captions, where there is one.
AUTO = "auto"
#: Bytes of the longest caption.
MOST_BYTES = 64 << 10
#: Captions of an image, and bytes of them, on an average: more are no captions, but an archive that unpacks for ever.
_MOST_EACH, _MOST_BYTES_EACH = 1000, 1 << 20
#: What a file keeps of captions: their text, where each ends in it, and how many each image has.
KEPT = {"captions": np.uint8, "caption_ends": np.int64, "caption_counts": np.int64}
_DRAWN_AT_ONCE = 4096  # samples whose choices come from one random stream: to seed one for each takes long
Int64s = npt.NDArray[np.int64]


class Captions:
    """The captions of images: ``captions[i]`` are those of image i, text of UTF-8 without white space around it.

    In a few arrays, which worker processes share: caption j is ``text[begins[j]:ends[j]]``, text uint8, and image i has
    those from ``first[i]`` to ``first[i + 1]``.
    """

    def __init__(self, text: npt.NDArray[np.uint8], begins: Int64s, ends: Int64s, first: Int64s) -> None:
        self.text, self.begins, self.ends, self.first = text, begins, ends, first

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, image: int) -> tuple[str, ...]:
        return tuple(piece.decode() for piece in self._pieces(range(len(self))[image]))

    def _pieces(self, image: int) -> list[bytes]:
        those = range(self.first[image], self.first[image + 1])
        return [self.text[self.begins[j] : self.ends[j]].tobytes() for j in those]

    @property
    def counts(self) -> Int64s:
        """How many captions each image has, (n,)."""
        return np.diff(self.first)

    def pick(self, image: int, seed: int, sample: int | None = None) -> str:
        """Return the caption of an image that a sample is given: of several, the one that (seed, its number) draws.

        None for the first one.
        """
        begin, end = self.first[image], self.first[image + 1]
        chosen = begin + drawn(seed, sample, int(end - begin))
        return self.text[self.begins[chosen] : self.ends[chosen]].tobytes().decode()

    def hashes(self) -> Int64s:
        """Return 64 bits of a hash of each image's captions, (n,)."""
        digests = bytearray()
        for image in range(len(self)):
            pieces = self._pieces(image)
            said = b"".join(len(piece).to_bytes(4, "little") + piece for piece in pieces)
            digests += hashlib.blake2b(said, digest_size=8).digest()
        return np.frombuffer(bytes(digests), dtype=np.int64)

    def of(self, images: npt.NDArray[Any]) -> Captions:
        """Return those of some images, in their order."""
        counts = self.counts[images]
        first = _cumulated(counts)
        chosen = np.repeat(self.first[:-1][images] - first[:-1], counts) + np.arange(first[-1])
        return Captions(self.text, self.begins[chosen], self.ends[chosen], first)

    @classmethod
    def joined(cls, parts: Sequence[Captions]) -> Self:
        """Return the captions of the images of one or more parts, one part after the other."""
        begins = _cumulated([len(part.text) for part in parts])
        return cls(
            np.concatenate([part.text for part in parts]),
            np.concatenate([part.begins + begin for part, begin in zip(parts, begins, strict=False)]),
            np.concatenate([part.ends + begin for part, begin in zip(parts, begins, strict=False)]),
            _cumulated(np.concatenate([part.counts for part in parts])),
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what a file keeps of them, by the names of KEPT."""
        pieces = [self.text[begin:end] for begin, end in zip(self.begins.tolist(), self.ends.tolist(), strict=True)]
        ends = np.cumsum(self.ends - self.begins, dtype=np.int64)
        return {
            "captions": np.concatenate([self.text[:0], *pieces]),
            "caption_ends": ends,
            "caption_counts": self.counts,
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Return what `arrays` gave, once it is checked. Raises ValueError for what it cannot have given."""
        text, ends, counts = (arrays[name] for name in KEPT)
        if [text.dtype, ends.dtype, counts.dtype] != [*KEPT.values()]:
            raise ValueError(f"its captions are {text.dtype}, {ends.dtype} and {counts.dtype}")
        begins = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        lengths = np.diff(begins)
        if (lengths < 0).any() or (lengths > MOST_BYTES).any() or begins[-1] != len(text):
            raise ValueError(f"its captions do not end in order within {len(text)} bytes")
        if (counts < 1).any() or (counts > len(ends)).any() or counts.sum() != len(ends):
            raise ValueError(f"its {len(ends)} captions are not those of {len(counts)} images")
        text.tobytes().decode()  # UnicodeDecodeError is a ValueError
        if (text[ends[ends < len(text)]] & 0xC0 == 0x80).any():
            raise ValueError("a caption ends within a character")
        return cls(text, begins[:-1], ends, _cumulated(counts))


class CaptionList:
    """Captions that come one by one, of `images` images in any order; those of one image keep theirs."""

    def __init__(self, images: int) -> None:
        self._number = images
        self._text, self._ends, self._images = bytearray(), array("q", [0]), array("q")

    def add(self, image: int, given: Any) -> None:
        """Add an image's caption, or a list of captions; None is none, alone or in a list.

        Raises ValueError, with a reason, for what is no caption, and for more of them than there can be.
        """
        for text in given if isinstance(given, list) else [given]:
            if text is None:
                continue
            if not isinstance(text, str):
                raise ValueError(f"it is {type(text).__name__}, and no text")
            encoded = text.strip().encode()  # half of a surrogate pair is a ValueError
            if len(encoded) > MOST_BYTES:
                raise ValueError(f"it has {len(encoded):,} bytes")
            self._text += encoded
            self._ends.append(len(self._text))
            self._images.append(image)
        if len(self._images) > _MOST_EACH * self._number or len(self._text) > _MOST_BYTES_EACH * self._number:
            raise ValueError(f"with it they are {len(self._images):,} for {self._number:,} images")

    def packed(self) -> Captions:
        """Return them."""
        ends, images = np.array(self._ends, dtype=np.int64), np.array(self._images, dtype=np.int64)
        order = np.argsort(images, kind="stable")
        first = _cumulated(np.bincount(images, minlength=self._number))
        text = np.frombuffer(bytes(self._text), dtype=np.uint8)
        return Captions(text, ends[:-1][order], ends[1:][order], first)


def _cumulated(counts: npt.ArrayLike) -> Int64s:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def texts_of(given: Any) -> list[str]:
    """Return the texts of a caption, or of a list of captions, without white space around them.

    Empty ones are left out, unless all are empty: of those one is returned.
    """
    texts = [text.strip() for text in (given if isinstance(given, list) else [given]) if isinstance(text, str)]
    return [text for text in texts if text] or texts[:1]


def drawn(seed: int, sample: int | None, among: int) -> int:
    """Return which of so many captions a sample is given: the one that (seed, its number) draws, the first for None."""
    if sample is None or among == 1:
        return 0
    block, place = divmod(sample, _DRAWN_AT_ONCE)
    return int(_uniform(seed, block)[place] * among)


@lru_cache(4)
def _uniform(seed: int, block: int) -> npt.NDArray[np.float64]:
    return rng("caption", seed, block).random(_DRAWN_AT_ONCE)
