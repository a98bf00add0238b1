"""Measures: distances of feature sets, image quality, latent spaces; online ones for validation in training."""
