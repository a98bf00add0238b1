"""Generators: diffusion transformers on the tokenizer's latents."""
