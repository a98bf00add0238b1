"""What text encoders of transformers share: files, tokens, and results that do not depend on padding."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from aligntok.device import DTYPES, computing
from aligntok.errors import ConfigError
from aligntok.io.files import replacing, save_tensors, write_checksums, write_json
from aligntok.settings import Positive
from aligntok.text_encoders import TextEncoder, check_prompts
from aligntok.weights.load import weights_hash
from aligntok.weights.names import CONFIG, VOCABULARIES, WEIGHTS
from aligntok.weights.transformers import (
    Classes,
    build_model,
    digest_of,
    find_files,
    load_tokenizer,
    read_config,
    read_weights,
    tokenizer_files,
)

logger = logging.getLogger("aligntok.text")
_MOST_TOLD = 100  # prompts that are named as too long, of millions that there may be


class PretrainedTextEncoder(TextEncoder):
    """A text model of transformers, frozen, with its tokenizer; a subclass says which models it takes.

    path: the folder of a model (config.json, weights, tokenizer), one in an installed package, ``package:name/folder``,
    or its id on the hub, ``owner/name``, with ``@revision`` and ``/subfolder`` behind if wanted. tokenizer: the same,
    of the tokenizer, where that is elsewhere.
    max_tokens: what is longer is cut. precision: of weights and arithmetic. pretrained: False for random weights.
    """

    #: The models that it takes, as :data:`aligntok.weights.transformers.Classes` has it.
    classes: Classes = None
    #: A repository of the hub that has what it takes.
    example: str

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_tokens: Positive,
        tokenizer: str | os.PathLike[str] | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.who = type(self).__name__
        weights = (WEIGHTS,) if pretrained else ()
        vocabulary = (VOCABULARIES,) if tokenizer is None else ()
        folder = find_files(path, self.who, ((CONFIG,), *weights, *vocabulary), self.example)
        at = folder if tokenizer is None else find_files(tokenizer, self.who, (VOCABULARIES,), self.example)
        self._config = self.narrowed(read_config(folder, self.who))
        held = tokenizer_files(at, self.who)
        tensors = read_weights(folder, self.who) if pretrained else None
        self.model: Any = build_model(self._config, self.classes, tensors, DTYPES[precision], self.who)
        config = self.model.config
        self.dim = int(getattr(config, "hidden_size", 0) or config.get_text_config().hidden_size)
        self.max_tokens = max_tokens
        self.tokenize = PromptTokenizer(load_tokenizer(held, config, at, self.who), max_tokens, config, self.who)
        self._tokenizer_files, self._tokenizer_digest = held, digest_of(held)
        self.freeze()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config, weights and tokenizer as a folder that loads as this one. Raises WriteError."""
        place = Path(folder)
        write_json(place / CONFIG, self._config)
        save_tensors(place / WEIGHTS[0], self.model.state_dict(), {"format": "pt"}, checksum=False)
        for name, content in self._tokenizer_files.items():
            with replacing(place / name) as temporary:
                temporary.write_bytes(content)
        write_checksums(place, [CONFIG, WEIGHTS[0], *self._tokenizer_files])

    def narrowed(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the part of a model's config that is the text model's."""
        return config

    def options(self) -> Mapping[str, Any]:
        """Return what the result depends on beside weights, config, tokenizer and length, for the identity."""
        return {}

    @cached_property
    def identity(self) -> str:
        """SHA-256 of weights, config, tokenizer files, length and options; 64 hexadecimal digits. Taken once."""
        told = {"type": self.who, "config": self._config, "tokenizer": self._tokenizer_digest}
        return weights_hash({**told, "max_tokens": self.max_tokens, **self.options()}, self.model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return text (N, L, D), its mask and what is pooled, float32.

        The model sees each prompt's tokens first, and as little padding as there may be behind, wherever it was:
        positions then begin at 0, as for a prompt alone. Whatever precision is on around it does not change the result.
        """
        mask = self.attended(attention_mask.bool())
        order = (~mask).int().argsort(dim=1, stable=True)[:, : max(1, int(mask.sum(1).max()))]  # its own tokens first
        first = mask.gather(1, order)
        with torch.no_grad(), computing("fp32", input_ids.device):
            states, pooled = self.states(input_ids.gather(1, order), first)
            states = states.float().masked_fill(~first[..., None], 0)
            text = states.new_zeros(*mask.shape, self.dim).scatter(1, order[..., None].expand_as(states), states)
            if pooled is None:
                pooled = self.pooled(states, first)
        return {"text": text, "mask": mask, **({} if pooled is None else {"pooled": pooled.float()})}

    def attended(self, mask: Tensor) -> Tensor:
        """Return which tokens (N, L) count as text."""
        return mask

    def states(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the model's hidden states (N, L, D) of tokens (N, L), padding last, and what it pools by itself."""
        return self.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state, None

    def pooled(self, states: Tensor, mask: Tensor) -> Tensor | None:
        """Return the pooled row (N, P) of states (N, L, D), 0 where mask (N, L) is False; None without one."""
        return None


class PromptTokenizer:
    """Prompts to tokens, with the tokens that the model wants around them; pickled without any weights.

    full: pad to max_tokens always. Raises ConfigError for a length that has no room for a prompt, or that the model has
    no positions for.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, config: Any, who: str) -> None:
        self.tokenizer, self.max_tokens, self.who, self.full = tokenizer, max_tokens, who, False
        self._told: set[int] = set()
        tokenizer.model_max_length = 1 << 40  # what is too long is told here
        around = tokenizer.num_special_tokens_to_add()
        if max_tokens <= around:
            raise ConfigError(
                f"{who}: max_tokens={max_tokens} has no room for a prompt; set it to {around + 1} or more"
            )
        text_config = config.get_text_config()
        #: How many rows the model's table of tokens has.
        self.vocabulary = int(text_config.vocab_size)
        learned = hasattr(text_config, "max_position_embeddings") and not hasattr(text_config, "rope_parameters")
        most = text_config.max_position_embeddings if learned else max_tokens
        if learned and text_config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            most -= text_config.pad_token_id + 1  # their positions begin behind that of padding
        if max_tokens > most:
            raise ConfigError(f"{who}: max_tokens={max_tokens}, but the model has {most} positions; set it to {most}")
        empty = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
        self.empty = next((token for token in empty if token is not None), 0)
        self.padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __call__(self, texts: Sequence[str], full: bool = False) -> dict[str, Tensor]:
        """Return ``dict(input_ids=, attention_mask=)``, int64 (N, L), padded behind the prompts.

        L is the longest prompt's length, or max_tokens with `full`. A prompt that no token stands for, as "" where the
        model wants none around it, becomes the token of a beginning or end. What is cut is told in words, once,
        of a hundred prompts. Raises ConfigError for what are no prompts, and for tokens that the model does not know.
        """
        texts = check_prompts(texts, self.who)
        rows = self.tokenizer(texts, add_special_tokens=True, padding=False, truncation=False)["input_ids"]
        rows = [
            self._cut(text, row) if len(row) > self.max_tokens else row for text, row in zip(texts, rows, strict=True)
        ]
        rows = [row or [self.empty] for row in rows]
        if (highest := max(map(max, rows))) >= self.vocabulary:
            raise ConfigError(
                f"{self.who}: its tokenizer gives token {highest}, but the model knows {self.vocabulary} tokens; take "
                "the tokenizer that the model was trained with"
            )
        length = self.max_tokens if full or self.full else max(map(len, rows))
        ids = torch.full((len(rows), length), self.padding, dtype=torch.int64)
        mask = torch.zeros(len(rows), length, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _cut(self, text: str, row: Sequence[int]) -> list[int]:
        """Return the tokens of a prompt that is too long, cut; say once how many of its words are left out."""
        found = self.tokenizer(text, truncation=True, max_length=self.max_tokens, return_offsets_mapping=True)
        left_out = text[max(end for _, end in found["offset_mapping"]) :].split()
        if left_out and len(self._told) < _MOST_TOLD and hash(text) not in self._told:
            self._told.add(hash(text))
            logger.warning(
                "%s: a prompt of %d tokens is cut to %d, without its last %d words: %s...%s",
                *(self.who, len(row), self.max_tokens, len(left_out), ascii(text[:40])[1:-1]),
                " (others are cut without a word from now on)" * (len(self._told) == _MOST_TOLD),
            )
        ids: list[int] = found["input_ids"]
        return ids
