"""Decoders: latents to images."""

from aligntok.decoders.base import Decoder

__all__ = ["Decoder"]
