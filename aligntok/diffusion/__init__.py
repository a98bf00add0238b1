"""Diffusion on the linear path: times, losses, samplers and guidance, as functions of tensors without weights.

Everywhere t = 0 is noise and t = 1 is data.
"""
