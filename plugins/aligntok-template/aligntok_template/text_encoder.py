"""A text encoder of one's own: prompts to one vector a letter, and their mean."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aligntok.text_encoders import TextEncoder, check_prompts
from aligntok.weights.load import weights_hash

LETTERS = "abcdefghijklmnopqrstuvwxyz "


class Letters:
    """Prompts to numbers of letters; an object of its own, as processes that load data get it without the weights."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str], full: bool = False) -> dict[str, Tensor]:
        prompts = [text.lower()[: self.max_tokens - 1] for text in check_prompts(texts, "my_text_encoder")]
        rows = [torch.tensor([LETTERS.find(letter) + 2 for letter in text] + [0]) for text in prompts]  # 0 is the end
        length = self.max_tokens if full else max(map(len, rows))
        ids, mask = torch.zeros(2, len(rows), length, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask}


class MyTextEncoder(TextEncoder):
    """One random vector a letter: text (N, L, 16) and their mean (N, 16)."""

    dim = pooled_dim = 16  # D and P; pooled_dim = None for an encoder without a pooled row

    def __init__(self, max_tokens: int = 64) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.tokenize = Letters(max_tokens)
        self.table = nn.Embedding(len(LETTERS) + 2, self.dim)
        self.freeze()  # eval mode, no gradients

    @property
    def identity(self) -> str:  # of everything that the result follows from: caches are known by it
        return weights_hash({"type": "my_text_encoder", "max_tokens": self.max_tokens}, self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:  # both (N, L)
        mask = attention_mask.bool()
        text = self.table(input_ids) * mask[..., None]  # 0 where there is no text
        return {"text": text, "mask": mask, "pooled": text.sum(1) / mask.sum(1, keepdim=True)}
