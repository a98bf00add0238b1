"""Adapters: the encoder's features to the latent."""
