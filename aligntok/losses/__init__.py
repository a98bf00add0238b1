"""Losses: what the tokenizer minimises."""

from aligntok.errors import check_same_shape
from aligntok.losses.base import Loss

__all__ = ["Loss", "check_same_shape"]
