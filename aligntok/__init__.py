"""AlignTok: pretrained vision encoders, aligned into the image tokenizers of latent diffusion models.

Importing this package is cheap: torch and the model libraries load when a component is first built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from aligntok.latent_diffusion import LatentDiffusion
    from aligntok.tokenizer import Tokenizer

__version__ = "0.1.0"

#: Marks a plugin's implementation of :func:`aligntok.plugins.aligntok_register`.
hookimpl = pluggy.HookimplMarker("aligntok")


def load_tokenizer(source: Any, **kwargs: Any) -> Tokenizer:
    """Load a tokenizer from a saved folder, a hub id, a training work folder or a published VA-VAE checkpoint.

    See :func:`aligntok.loading.load_tokenizer` for what each source may be and the errors raised.
    """
    # Imported by name: this package stands above all its parts, and they import it for the hook marker and the version.
    return importlib.import_module("aligntok.loading").load_tokenizer(source, **kwargs)


def load_latent_diffusion(source: Any, **kwargs: Any) -> LatentDiffusion:
    """Load a generator with its tokenizer from a saved folder or a training work folder.

    See :func:`aligntok.loading.load_latent_diffusion` for keywords and the errors raised.
    """
    loading = importlib.import_module("aligntok.loading")  # by name, as above
    return loading.load_latent_diffusion(source, **kwargs)


__all__ = ["__version__", "hookimpl", "load_latent_diffusion", "load_tokenizer"]
