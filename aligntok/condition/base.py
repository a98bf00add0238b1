"""What pictures are asked for by, classes or prompts: one object, which training and sampling ask and never look into.

The words are labels or prompts, as people give them; the given is what a generator's `forward` takes as y: labels (N,),
or the tensors of encoded prompts, by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from aligntok.diffusion.guidance import Given


class Condition(ABC):
    """What a generator is conditioned on, and how words become what it is given.

    `conditioned_on` is the generator's own word for it; `dropout` how often training puts the null condition in place;
    `class_names` the names of classes, where there are such; `conditional` whether it is of more classes than one.
    """

    conditioned_on: ClassVar[str]
    dropout: float = 0.0
    class_names: tuple[str, ...] = ()
    conditional: bool = False
    #: Whether a batch's words have to be encoded, which takes time.
    encodes: bool = False
    #: What was encoded before the training, if anything; rows of a batch come from it.
    cache: Any = None
    #: Keywords of a data set that brings what is conditioned on, if nobody says otherwise.
    asked_of_data: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def of(self, batch: Mapping[str, Any], device: torch.device) -> Given:
        """Return what a batch of the data is conditioned on, N rows. Raises DataError for what cannot be."""

    @abstractmethod
    def null(self, number: int, device: torch.device) -> Given | None:
        """Return so many rows of the null condition, "anything"; None where none is ever trained."""

    @abstractmethod
    def drop(self, given: Given, dropped: Tensor) -> Given:
        """Return `given` with the null condition in the rows that are `dropped`, bool (N,)."""

    @abstractmethod
    def from_words(self, words: Sequence[Any], device: torch.device) -> Given:
        """Return what the words ask for, a row each. Raises ConfigError for words that there are not."""

    @abstractmethod
    def check_words(self, words: Sequence[Any]) -> None:
        """Raise ConfigError for words that there are not; nothing is encoded."""

    def seed(self, seed: int, place: int, image: int) -> int:
        """Return the seed of an image: that many after others of the word at a place, of a set with seed `seed`."""
        return seed + place

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what rebuilds it beside its generator, as JSON types: keywords of LatentDiffusion."""

    @abstractmethod
    def examples(self, number: int, data: Any) -> list[Any]:
        """Return so many words, spread over what there is, to draw pictures of while training on `data`."""

    def captions(self, words: Sequence[Any]) -> list[str]:
        """Return what stands below pictures of these words; nothing where they say little."""
        return []

    @abstractmethod
    def check_data(self, data: Any) -> None:
        """Raise DataError or ConfigError unless a data set brings what its samples are to be conditioned on."""

    @abstractmethod
    def check_guidance(self, cfg_scale: float, where: str, weak: Any = None) -> None:
        """Raise ConfigError for guidance away from nothing: no `weak` generator, no null condition that is trained."""

    def check_encoders(self) -> None:
        """Raise WeightsError or ConfigError for encoders that are not there, or do not fit; no weights are read."""
        return

    def encoder_bytes(self) -> dict[str, int]:
        """Return the bytes of the weights that encode a step's words, by name. Raises as `check_encoders` does."""
        return {}

    def save_encoders(self, folder: Path) -> None:
        """Write what encodes the words, if anything does. Raises ConfigError for what cannot be written."""
        return

    @abstractmethod
    def differences(self, other: Condition) -> dict[str, tuple[Any, Any]]:
        """Return in what `other` asks for other things, by name: its and ours."""

    def to_encode(self, data: Any) -> dict[str, Any] | None:
        """Return what is to be encoded before a training: keywords of `cache_texts`; None for nothing."""
        return None

    @abstractmethod
    def blank(self, number: int, device: torch.device) -> Given:
        """Return what a generator is given, so many rows of no meaning, of the size that training has at most."""

    def item(self) -> dict[str, Any]:
        """Return what an item of the data has for it, of no meaning: for a step without data."""
        return {"label": 0}

    def without_encoders(self) -> None:
        """Take zeros for whatever would have to be encoded: for what is planned and measured, not trained."""
        return

    def collate(self, collate: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """Return what puts items together in a loader's processes, what it can prepare there included."""
        return collate
