"""Losses: what the tokenizer minimises."""

from aligntok.losses.base import Loss, check_same_shape

__all__ = ["Loss", "check_same_shape"]
