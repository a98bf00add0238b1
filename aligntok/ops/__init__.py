"""Tensor work that several components share: attention, rotary positions, the convolutional blocks of LDM."""
