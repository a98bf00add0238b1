"""AlignTok plugin: the encoder `efficientnet_lite0`, with the ImageNet weights that the package index ships."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntok import hookimpl

if TYPE_CHECKING:
    from aligntok.registry import Registries


@hookimpl
def aligntok_register(registries: Registries) -> None:
    """Add the encoder, imported when it is first built."""
    registries.encoders.add("efficientnet_lite0", "aligntok_efficientnet_lite.encoder.EfficientNetLite0Encoder")
