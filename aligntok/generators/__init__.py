"""Generators: diffusion transformers on the tokenizer's latents."""

from aligntok.generators.base import Generator

__all__ = ["Generator"]
