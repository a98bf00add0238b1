"""For diffusers: tokenizers as its autoencoders, and a generator of classes as its pipeline.

The classes need diffusers, and are imported when they are asked for; writing the folders that they load does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from aligntok.errors import ConfigError
from aligntok.imports import FAILURES, import_failure, quietly

if TYPE_CHECKING:
    from aligntok.diffusers.models import AutoencoderAlignTok, LightningDiTModel
    from aligntok.diffusers.pipeline import LightningDiTPipeline

__all__ = ["AutoencoderAlignTok", "LightningDiTModel", "LightningDiTPipeline"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    try:
        with quietly():  # diffusers imports xformers
            module = importlib.import_module(f"{__name__}.{'pipeline' if name.endswith('Pipeline') else 'models'}")
    except FAILURES as error:
        raise ConfigError(f"aligntok.diffusers.{name} needs diffusers: {import_failure(error)}") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
