"""Losses: what the tokenizer minimises, the tensors it is made of, and the one its gradient enters at."""

from __future__ import annotations

from torch import nn

#: What a loss may ask for, by name, in `inputs`.
TENSORS = {
    "images": "(N, 3, H, W) in [-1, 1]",
    "reconstruction": "(N, 3, H, W), about [-1, 1]",
    "latents": "(N, d, h, w), after the adapter",
    "moments": "(N, 2*d, h, w), means then log-variances",
    "features": "(N, C, h, w), before the adapter",
    "teacher_features": "(N, C, h, w), the frozen teacher's, before its adapter",
    "teacher_latents": "(N, d, h, w), the frozen teacher's, after its adapter",
    "fake_logits": "(N, 1, h', w'), the discriminator's for the reconstruction",
}


#: Where the gradient of a loss may enter the tokenizer: its `at`.
ENTRY_POINTS = ("reconstruction", "latents", "moments", "features")


class Loss(nn.Module):
    """Base of all losses: ``forward(*inputs)`` returns a float32 scalar.

    inputs: names from `TENSORS`, in the order `forward` takes them. at: the tensor, one of `ENTRY_POINTS`, through
    which all of this loss's gradient reaches the tokenizer.
    """

    at: str
    inputs: tuple[str, ...]
