"""Samples of a generator, drawn into a folder or swept over. The settings load without torch, for a command's help."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aligntok.sampling.settings import SampleRequest

if TYPE_CHECKING:
    from aligntok.sampling.samples import sample_images

__all__ = ["SampleRequest", "sample_images"]


def __getattr__(name: str) -> Any:
    if name == "sample_images":
        return importlib.import_module("aligntok.sampling.samples").sample_images
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
