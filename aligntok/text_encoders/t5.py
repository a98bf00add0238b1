"""The encoders of T5 and its kin, of which FLUX and others take the tokens' embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from aligntok.annotations import takes_keywords_of
from aligntok.settings import Positive
from aligntok.text_encoders.pretrained import PretrainedTextEncoder


class T5TextEncoder(PretrainedTextEncoder):
    """The last hidden states (N, L, D) of a T5, mT5 or UMT5 encoder, whichever the folder's config says; none pooled.

    path: a folder, or a hub id. padding: "mask", so that a prompt's result does not depend on it; or "attend", as FLUX
    was trained: always max_tokens long, the padding encoded as if it were text, and all of it text for the generator.
    Raises WeightsError for files that are missing, damaged or of another model, ConfigError without transformers.
    """

    classes = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    example = "google/t5-v1_1-xxl"

    @takes_keywords_of(PretrainedTextEncoder.__init__, but=("max_tokens",))
    def __init__(
        self,
        path: str | os.PathLike[str] = example,
        *,
        max_tokens: Positive = 512,
        padding: Literal["mask", "attend"] = "mask",
        **keywords: Any,
    ) -> None:
        super().__init__(path, max_tokens=max_tokens, **keywords)
        self.padding = padding
        self.tokenize.full = padding == "attend"  # type: ignore[attr-defined]

    def options(self) -> Mapping[str, Any]:
        return {"padding": self.padding}

    def attended(self, mask: Tensor) -> Tensor:
        return torch.ones_like(mask) if self.padding == "attend" else mask
