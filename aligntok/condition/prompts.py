"""Prompts as what a generator is conditioned on: text encoders, captions prepared in loaders, the empty prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from aligntok.condition.base import Condition, Given
from aligntok.condition.text_models import TextModels, TextSettings, check_text_registered, tokens_of
from aligntok.data.captions import AUTO
from aligntok.data.loader import captions_of
from aligntok.data.sampler import evenly_spaced
from aligntok.distributed.job import batched
from aligntok.errors import ConfigError, DataError
from aligntok.rng import rng
from aligntok.settings import read
from aligntok.text_encoders import check_prompts

_KEPT_BYTES = 2**30  # of encoded prompts that stay in main memory while pictures are drawn
_AT_ONCE = 64  # prompts that are encoded together for pictures


class PromptCondition(Condition):
    """Prompts in words, encoded by frozen text encoders, which are loaded when the first is asked for.

    text: `generator.text` of a config, or of a file that brings it (`trusted` False: registered names alone). Of
    encoders whose `identity` it names, another content is refused. paths: where encoders are, by "tokens" and "pooled",
    where `text` does not say. Raises ConfigError for encoders that the generator has no use for, or lacks.
    """

    conditioned_on = "prompts"
    asked_of_data = {"caption": AUTO}

    def __init__(
        self,
        generator: Any,
        text: Mapping[str, Any],
        paths: Mapping[str, Any] | None = None,
        trusted: bool = True,
        components: Mapping[str, Any] | None = None,
    ) -> None:
        if not trusted:
            check_text_registered(text, components)
        self.text = read(TextSettings, text, "generator.text")
        self.dropout = self.text.dropout
        self.models = TextModels(generator, self.text, paths or {}, components)
        if (self.text.guidance is not None) != generator.guidance_embed:
            raise ConfigError(
                f"{type(generator).__name__}: guidance_embed={generator.guidance_embed}, but generator.text.guidance "
                f"is {self.text.guidance}; give a number to weights that were distilled with guidance, such as 3.5, "
                "and none to others"
            )
        self._full = generator.text_padding == "attend"
        self._known: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    @property
    def encoders(self) -> dict[str, Any]:
        """The text encoders by "tokens" and "pooled", loaded once. Raises as :attr:`TextModels.encoders` does."""
        return self.models.encoders

    @property
    def encodes(self) -> bool:  # type: ignore[override]
        """Whether captions are encoded as they come, and not from a cache."""
        return self.cache is None

    def check_encoders(self) -> None:
        self.models.check()

    def encoder_bytes(self) -> dict[str, int]:
        """Return the bytes of the text encoders that a step needs: none, where captions are encoded beforehand."""
        return {} if self.text.cache else self.models.bytes()

    def save_encoders(self, folder: Path) -> None:
        """Write the text encoders, each into a folder of its identity's name."""
        self.models.write(folder)

    def of(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
        """Return the encoded captions of a batch: from a cache, from tokens, or from words."""
        if (ready := batch.get("encoded")) is None:
            tokens = batch["tokens"] if "tokens" in batch else self.models.tokens(batch["caption"], self._full)
            return self._with_guidance(self.models.encode(tokens, device))
        return self._with_guidance({name: tensor.to(device, non_blocking=True) for name, tensor in ready.items()})

    def null(self, number: int, device: torch.device) -> dict[str, Tensor]:
        """Return the empty prompt, so many rows."""
        one = self.from_words([""], device)
        return {name: tensor.expand(number, *tensor.shape[1:]) for name, tensor in one.items()}

    def drop(self, given: Given, dropped: Tensor) -> dict[str, Tensor]:
        """Return encoded prompts, the empty one in the rows that are dropped."""
        assert isinstance(given, Mapping)  # its own
        if not self.dropout:
            return dict(given)
        full, null = same_length(given, self.null(1, dropped.device))
        rows = {name: dropped.reshape(-1, *[1] * (own.dim() - 1)) for name, own in full.items()}
        return {name: torch.where(rows[name], null[name].to(own.dtype), own) for name, own in full.items()}

    def from_words(self, words: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
        """Return prompts encoded, padded to the longest. The last ones are kept, and not encoded again."""
        self.check_words(words)
        new = [word for word in dict.fromkeys(words) if word not in self._known]
        for few in batched(new, _AT_ONCE):
            self._keep(few, device)
        rows = [self._known[word] for word in words]
        while (
            sum(each.nbytes for row in self._known.values() for each in row.values()) > _KEPT_BYTES
            and len(self._known) > 1
        ):
            self._known.popitem(last=False)
        longest = max(len(row["mask"]) for row in rows)
        return self._with_guidance(
            {name: torch.stack([_lengthened(name, row[name], longest) for row in rows]).to(device) for name in rows[0]}
        )

    def _keep(self, texts: Sequence[str], device: torch.device) -> None:
        """Encode texts, and keep the rows of each without padding, in main memory."""
        if self.cache is not None and all(text in self.cache for text in texts):
            encoded = self.cache.get(texts, self._full)
        else:
            encoded = self.models.encode(self.models.tokens(texts, self._full), device)
            self.models.leave(device)  # pictures need the memory; a training's captions come through `of`
        for row, text in enumerate(texts):
            whole = {name: tensor[row].to("cpu", copy=True) for name, tensor in encoded.items()}
            there = torch.ones_like(whole["mask"]) if self._full else whole["mask"]
            self._known[text] = whole | {name: whole[name][there] for name in ("text", "mask")}

    def seed(self, seed: int, place: int, image: int) -> int:
        """Return the seed of an image of the prompt at a place: another one for each, whatever comes beside it."""
        return int(rng("prompt", seed, place, image).integers(2**32))

    def check_words(self, words: Sequence[Any]) -> None:
        """Raise ConfigError for no prompts at all, and for what is no text, or has no UTF-8."""
        if not len(words):
            raise ConfigError("no prompt was given; give at least one, such as 'a red apple' ('' is any picture)")
        if wrong := [word for word in words if not isinstance(word, str)]:
            raise ConfigError(f"this generator takes prompts, was given {wrong[0]!r}; give text")
        check_prompts(words, "generator.text")

    def _with_guidance(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = given["text"].new_full((len(given["text"]),), self.text.guidance or 0.0)
        return given if self.text.guidance is None else {**given, "guidance": rows}

    def collate(self, collate: Callable[..., Any] | None) -> Callable[..., Any]:
        """Return what puts items together and turns their captions into tokens, or takes them from the cache."""
        tokenize = {} if self.cache is not None else {name: each.tokenize for name, each in self.encoders.items()}
        return PromptCollate(collate or default_collate, tokenize, self._full, self.cache)

    def to_encode(self, data: Any) -> dict[str, Any] | None:
        """Return all captions of the data, and the encoders, if `generator.text.cache` asks for it."""
        if not self.text.cache:
            return None
        captions = captions_of(data)
        texts = (text for image in range(len(captions)) for text in captions[image])
        kept = {} if self.text.cache is True else {"dtype": self.text.cache}
        return {"texts": texts, "tokens": self.encoders["tokens"], "pooled": self.encoders.get("pooled"), **kept}

    def blank(self, number: int, device: torch.device) -> dict[str, Tensor]:
        """Return zeros for prompts that are as long as the text encoder takes them."""
        length, (width, pooled) = self.models.longest(), self.models.widths.values()
        zero, one = torch.zeros((), device=device), torch.ones((), dtype=torch.bool, device=device)
        given = {"text": zero.expand(number, length, width), "mask": one.expand(number, length)}
        return self._with_guidance(given | ({"pooled": zero.expand(number, pooled)} if pooled else {}))

    def item(self) -> dict[str, Any]:
        """Return a label, and a blank prompt that is encoded."""
        return {**super().item(), "encoded": {name: row[0] for name, row in self.blank(1, torch.device("cpu")).items()}}

    def without_encoders(self) -> None:
        """Take zeros for the empty prompt, which training puts in a caption's place."""
        self._known[""] = self.item()["encoded"]

    def describe(self) -> dict[str, Any]:
        """Return the text encoders by type, hub id, keywords and identity; of no place of this machine."""
        told = {"dropout": self.dropout, "guidance": self.text.guidance}  # a cache belongs to a training
        return {"text": {**self.models.describe(), **told}}

    def examples(self, number: int, data: Any) -> list[str]:
        """Return captions of the data, evenly spaced."""
        places, captions = evenly_spaced(len(data), min(number, len(data))), captions_of(data)
        return [data[i]["caption"] if captions is None else captions[i][0] for i in places]

    def captions(self, words: Sequence[Any]) -> list[str]:
        """Return the prompts."""
        return list(words)

    def check_data(self, data: Any) -> None:
        """Raise DataError unless the data bring captions."""
        if captions_of(data) is None and "caption" not in data[0]:
            raise DataError(
                "the generator takes prompts, but the data bring no captions; set data.train.caption, or give data "
                "with some: captions.csv or captions.jsonl in a folder or zip, .txt beside images in shards, a column"
            )

    def check_guidance(self, cfg_scale: float, where: str, weak: Any = None) -> None:
        """Raise ConfigError for guidance away from an empty prompt that nothing trains."""
        if cfg_scale != 1 and not self.dropout and weak is None:
            raise ConfigError(
                f"{where}: cfg_scale={cfg_scale} leads away from the empty prompt, but with generator.text.dropout=0 "
                "the generator learns none; use 1, train with dropout=0.1, or guide with a weaker generator"
            )

    def differences(self, other: Condition) -> dict[str, tuple[Any, Any]]:
        """Return whether the text encoders differ, by their identities."""
        if not isinstance(other, PromptCondition):
            return {"condition": (other.conditioned_on, self.conditioned_on)}
        # What a file says of its own will do: the other's prompts are never encoded.
        told = [one.models.describe() for one in (other, self)]
        named = [{name: each and each["identity"] for name, each in one.items()} for one in told]
        return {} if named[0] == named[1] else {"text encoders": (named[0], named[1])}


class PromptCollate:
    """Puts items with captions together, and these into tokens, or their rows of a cache; in a loader's processes.

    tokenize: of each text encoder, without its weights.
    """

    def __init__(
        self, collate: Callable[..., Any], tokenize: Mapping[str, Callable[..., Any]], full: bool, cache: Any = None
    ) -> None:
        self.collate, self.tokenize, self.full, self.cache = collate, dict(tokenize), full, cache

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collate(items))
        captions = [item["caption"] for item in items if "caption" in item]
        if captions and self.cache is not None:
            batch["encoded"] = self.cache.get(captions, self.full)
        elif captions:
            batch["tokens"] = tokens_of(self.tokenize, captions, self.full)
        return batch


def same_length(*given: Given | None) -> list[Any]:
    """Return encoded prompts with as many tokens each, masked where they had fewer; labels as they are."""
    texts = [each["mask"].shape[1] for each in given if isinstance(each, Mapping)]
    return [
        {name: _lengthened(name, tensor, max(texts), 1) for name, tensor in each.items()}
        if isinstance(each, Mapping)
        else each
        for each in given
    ]


def _lengthened(name: str, tensor: Tensor, length: int, dim: int = 0) -> Tensor:
    missing = length - tensor.shape[dim] if name in ("text", "mask") else 0
    if not missing:
        return tensor
    return F.pad(tensor, (0, 0) * (tensor.dim() - 1 - dim) + (0, missing))
