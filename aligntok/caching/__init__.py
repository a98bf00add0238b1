"""Latents of a data set, encoded once into a folder. The settings load without torch, for a command's help."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aligntok.caching.settings import CacheRequest, CacheSettings

if TYPE_CHECKING:
    from aligntok.caching.cache import cache_latents

__all__ = ["CacheRequest", "CacheSettings", "cache_latents"]


def __getattr__(name: str) -> Any:
    if name == "cache_latents":
        return importlib.import_module("aligntok.caching.cache").cache_latents
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
