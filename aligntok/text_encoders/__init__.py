"""Text encoders: frozen language models, prompts -> embeddings that a generator is conditioned on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Self

from aligntok.errors import ConfigError

#: From prompts, and whether to pad to the greatest length, to ``dict(input_ids=(N, L), attention_mask=(N, L))``.
Tokenize: TypeAlias = Callable[..., dict[str, Tensor]]


class TextEncoder(nn.Module):
    """Base of all text encoders: a list of N prompts to text (N, L, D) with its mask, and perhaps one row for each.

    dim: D. pooled_dim: P, None where there is no such row. max_tokens: the greatest L.

    A subclass sets these, gives `tokenize`, `forward` and `identity`, and ends building with :meth:`freeze`. What
    comes out for a prompt follows from it alone: not from the other prompts, nor from how much padding is where.

    tokenize: prompts to ``dict(input_ids=, attention_mask=)``, int64 (N, L) on the CPU, cut to max_tokens and padded to
    the longest, or with ``full=True`` to max_tokens. An object that is pickled without the weights: processes that load
    data call it.
    """

    dim: int
    pooled_dim: int | None = None
    max_tokens: int
    tokenize: Tokenize

    @property
    def identity(self) -> str:
        """SHA-256, 64 hexadecimal digits, of everything that the result follows from: weights, tokenizer, options.

        The same wherever the files lie; caches are known by it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define the property identity")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return ``dict(text=(N, L, D), mask=(N, L) bool, pooled=(N, P))`` of tokens (N, L); no pooled where P is None.

        float32; text is 0 where mask is False. The attention mask says which tokens are a prompt's, wherever they are.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(input_ids, attention_mask)")

    @torch.no_grad()
    def encode(self, texts: Sequence[str], full: bool = False) -> dict[str, Tensor]:
        """Return what :meth:`forward` does of prompts, on this module's device, without gradients.

        full: padded to max_tokens. Raises ConfigError for what are no prompts.
        """
        where = next(itertools.chain(self.parameters(), self.buffers()), torch.empty(0)).device
        tokens = self.tokenize(texts, full=full)
        found: dict[str, Tensor] = self(**{name: each.to(where) for name, each in tokens.items()})
        return found

    def freeze(self) -> None:
        """Go into eval mode for good, and take no gradient for any parameter."""
        self.train(False).requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: it is never trained, and nothing may be drawn at random."""
        return super().train(False)


def check_prompts(texts: Any, who: str) -> list[str]:
    """Return prompts as a list. Raises ConfigError unless they are a list of texts, one at least."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ConfigError(
            f"{who} takes a list of prompts, was given {type(texts).__name__}; put a single one in a list"
        )
    if not texts:
        raise ConfigError(f'{who} takes one prompt or more, was given none; "" is the prompt that says nothing')
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(f"{who}: prompt {place} is {type(text).__name__}, not text; leave it out, or give text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{who}: prompt {place}, {text[:40]!a}, is no UTF-8; correct it, or leave it out"
            ) from None
    return list(texts)


def encode_both(
    texts: Sequence[str], tokens: TextEncoder, pooled: TextEncoder | None = None, full: bool = False
) -> dict[str, Tensor]:
    """Return text and mask of one encoder, with the pooled row of another, if there is one, which may be the same.

    Raises ConfigError where `pooled` has none, and for what are no prompts.
    """
    check_pooled(pooled)
    found = tokens.encode(texts, full)
    row = found if pooled is tokens else {} if pooled is None else pooled.encode(texts)
    kept = {"text": found["text"], "mask": found["mask"]}
    return kept if pooled is None else {**kept, "pooled": row["pooled"].to(found["text"].device)}


def check_pooled(pooled: TextEncoder | None) -> None:
    """Raise ConfigError where an encoder that is to give pooled rows has none."""
    if pooled is not None and pooled.pooled_dim is None:
        raise ConfigError(
            f"{type(pooled).__name__} gives no pooled row, which text.pooled of a generator has to; take clip_text, "
            'hf_text with pool="mean", or None'
        )
