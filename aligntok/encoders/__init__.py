"""Encoders: pretrained vision models, images -> features on the tokenizer's grid."""

from aligntok.encoders.base import Encoder

__all__ = ["Encoder"]
