"""Gradient checkpointing of one block at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, x: Tensor, checkpointing: bool, *args: Tensor | None) -> Tensor:
    """Return ``block(x, *args)``; with checkpointing, its activations are recomputed in the backward pass, not kept."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, *args, use_reentrant=False)
    return block(x, *args)
