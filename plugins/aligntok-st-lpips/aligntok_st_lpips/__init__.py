"""AlignTok plugin: the loss `st_lpips`, a perceptual distance whose weights come from the package index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntok import hookimpl

if TYPE_CHECKING:
    from aligntok.registry import Registries


@hookimpl
def aligntok_register(registries: Registries) -> None:
    """Add the loss, imported when it is first built."""
    registries.losses.add("st_lpips", "aligntok_st_lpips.loss.STLPIPSLoss")
