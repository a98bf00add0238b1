"""CLIP's text tower, of which FLUX and others take the pooled row."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from aligntok.annotations import takes_keywords_of
from aligntok.settings import Positive
from aligntok.text_encoders.pretrained import PretrainedTextEncoder


class CLIPTextEncoder(PretrainedTextEncoder):
    """The last hidden states (N, L, D) of CLIP's text tower, and that of the end's token as the pooled row (N, D).

    path: a folder, or a hub id, of a CLIP model or of its text tower alone, with or without its projection, which is
    left out. Raises WeightsError for files that are missing, damaged or of another model, ConfigError without
    transformers.
    """

    classes = {"clip_text_model": "CLIPTextModel"}
    example = "openai/clip-vit-large-patch14"

    @takes_keywords_of(PretrainedTextEncoder.__init__, but=("max_tokens",))
    def __init__(self, path: str | os.PathLike[str] = example, *, max_tokens: Positive = 77, **keywords: Any) -> None:
        super().__init__(path, max_tokens=max_tokens, **keywords)
        self.pooled_dim = self.dim

    def narrowed(self, config: dict[str, Any]) -> dict[str, Any]:
        if config.get("model_type") != "clip":
            return config
        return {**config.get("text_config", {}), "model_type": "clip_text_model"}

    def states(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        found = self.model(input_ids=input_ids, attention_mask=mask.long())
        return found.last_hidden_state, found.pooler_output
