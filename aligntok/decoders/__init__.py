"""Decoders: latents to images."""
