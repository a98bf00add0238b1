"""AlignTok plugin: the loss and the extractor `st_lpips`, whose weights come from the package index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntok import hookimpl

if TYPE_CHECKING:
    from aligntok.registry import Registries


@hookimpl
def aligntok_register(registries: Registries) -> None:
    """Add both, imported when they are first built."""
    registries.losses.add("st_lpips", "aligntok_st_lpips.loss.STLPIPSLoss")
    registries.extractors.add("st_lpips", "aligntok_st_lpips.extractor.STLPIPSExtractor")
