"""AlignTok: pretrained vision encoders, aligned into the image tokenizers of latent diffusion models.

Importing this package is cheap: torch and the model libraries load when one of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pluggy import HookimplMarker

if TYPE_CHECKING:
    from aligntok.latent_diffusion import LatentDiffusion
    from aligntok.loading import load_latent_diffusion, load_tokenizer
    from aligntok.notebook import evaluate, sample, train
    from aligntok.plugins import list_components
    from aligntok.processor import ImageProcessor
    from aligntok.tokenizer import Tokenizer

__version__ = "0.1.0"

#: Marks a plugin's implementation of :func:`aligntok.plugins.aligntok_register`.
hookimpl = HookimplMarker("aligntok")

#: Where each name is that is imported when it is first used.
_HOMES = {
    "ImageProcessor": "aligntok.processor",
    "LatentDiffusion": "aligntok.latent_diffusion",
    "Tokenizer": "aligntok.tokenizer",
    "evaluate": "aligntok.notebook",
    "list_components": "aligntok.plugins",
    "load_latent_diffusion": "aligntok.loading",
    "load_tokenizer": "aligntok.loading",
    "sample": "aligntok.notebook",
    "train": "aligntok.notebook",
}

__all__ = [
    "ImageProcessor",
    "LatentDiffusion",
    "Tokenizer",
    "__version__",
    "evaluate",
    "hookimpl",
    "list_components",
    "load_latent_diffusion",
    "load_tokenizer",
    "sample",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'aligntok' has no attribute '{name}'")
    # By name: this package stands above all its parts, and they import it for the hook marker and the version.
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return list(__all__)
