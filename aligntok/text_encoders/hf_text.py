"""Any text model of transformers' AutoModel: MiniLM, Qwen3, Gemma 3 and others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from aligntok.annotations import takes_keywords_of
from aligntok.errors import ConfigError, first_line
from aligntok.settings import Positive
from aligntok.text_encoders.pretrained import PretrainedTextEncoder


class HFTextEncoder(PretrainedTextEncoder):
    """Hidden states (N, L, D) of a language model, and a pooled row (N, D) of them if wanted.

    path: a folder, or a hub id. layer: whose states, as transformers counts them: 0 of the embeddings, -1 of the last
    layer, normalised at the end where the model does so, -2 of the one before. pool: "mean" of a prompt's tokens,
    "last" of them, or None. Raises WeightsError for files that are missing, damaged or of another model, ConfigError
    for a layer that there is not, a model that does not take text alone, and without transformers.
    """

    example = "sentence-transformers/all-MiniLM-L6-v2"

    @takes_keywords_of(PretrainedTextEncoder.__init__, but=("max_tokens",))
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_tokens: Positive = 256,
        layer: int = -1,
        pool: Literal["mean", "last"] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(path, max_tokens=max_tokens, **keywords)
        self.layer, self.pool = layer, pool
        self.pooled_dim = None if pool is None else self.dim
        layers = int(self.model.config.get_text_config().num_hidden_layers)
        if not -layers - 1 <= layer <= layers:
            raise ConfigError(
                f"{self.who}: layer={layer}, but the model has layers {-layers - 1} to {layers}; take one"
            )
        self.check_model()

    @torch.no_grad()
    def check_model(self) -> None:
        """Raise ConfigError unless two tokens give states of the model's width."""
        if next(self.model.parameters()).is_meta:
            return
        try:
            shape = tuple(self(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2))["text"].shape)
            if shape != (1, 2, self.dim):
                raise ValueError(f"they are {shape} of two tokens")
        except Exception as error:  # of a model that wants images, or a text to translate into
            raise ConfigError(
                f"{self.who}: a {type(self.model).__name__} gives no states (N, L, {self.dim}) of text alone "
                f"({first_line(error)}); take a language model, or t5 or clip_text for these"
            ) from error

    def options(self) -> Mapping[str, Any]:
        return {"layer": self.layer, "pool": self.pool}

    def states(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        last = self.layer in (-1, int(self.model.config.get_text_config().num_hidden_layers))
        found = self.model(input_ids=input_ids, attention_mask=mask.long(), output_hidden_states=not last)
        return found.last_hidden_state if last else found.hidden_states[self.layer], None

    def pooled(self, states: Tensor, mask: Tensor) -> Tensor | None:
        count = mask.sum(1, keepdim=True).clamp(min=1)
        if self.pool == "last":
            return states[torch.arange(len(states), device=states.device), count[:, 0] - 1]
        return states.sum(1) / count if self.pool == "mean" else None
