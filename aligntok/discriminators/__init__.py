"""Discriminators: images to patch logits."""
