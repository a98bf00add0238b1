"""The gradient-ratio weights of the adaptive losses (paper, App. A), exact and nearly free.

A step walks the graph once, from the image to the encoder: the gradients of the losses at a tensor are combined there,
and only the combination goes on through the part below. What a weight needs besides is the gradient of each loss at
one last layer, which lies right below the tensor, so no part is walked a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from aligntok.distributed import mean_over_processes
from aligntok.errors import ConfigError
from aligntok.settings import settings


@settings(renamed={"max_ratio": "max", "against": "reference"})
class AdaptiveWeight:
    """A loss's weight by a ratio of gradients."""

    at: Literal["decoder", "encoder"]
    """The part at whose last layer the gradients are taken."""
    max: Annotated[float, Field(ge=1e-9, le=1e30)] = 1e4
    """The largest weight."""
    eps: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """The addition to the divisor."""
    reference: tuple[str, ...] | None = None
    """The losses on the image that it is held against, together and with their weights; None: all that a loss on the
    image can be held against, those without an adaptive weight, and everything that arrives from the image for a loss
    on the encoder's side."""


def gradient_ratio(reference: Tensor, other: Tensor, max: float = 1e4, eps: float | Tensor = 1e-4) -> Tensor:
    """Weight that makes `other` pull as hard as `reference` at one parameter (paper, App. A; LDM's adaptive weight).

    Both are gradients of the same parameter, any shape, averaged over processes. Returns a float32 scalar in
    [0, max] without gradient; 0 when `reference` is 0, finite when `other` is 0.
    """
    # r = |grad L_ref| / |grad L_other|
    ratio = reference.detach().float().norm() / (other.detach().float().norm() + eps)
    return ratio.clamp(0, max)


def gradient_at(parameter: nn.Parameter, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return the gradient of `parameter` (its shape) when `outputs` receive `gradients`; the graph is kept.

    Raises ConfigError when the parameter has no part in the outputs: a ratio of 0 would switch a loss off unnoticed.
    """
    try:
        (found,) = torch.autograd.grad(outputs, [parameter], gradients, retain_graph=True)
    except RuntimeError as error:
        if "not have been used in the graph" not in str(error):
            raise
        raise ConfigError(
            f"a gradient ratio is taken at a last layer of shape {tuple(parameter.shape)} that has no part in what the "
            "losses pull on; give the component the last_layer that its output comes from, or set adaptive_weight=None"
        ) from error
    return found


def ratio_at(
    parameter: nn.Parameter,
    reference: tuple[Sequence[Tensor], Sequence[Tensor]],
    other: tuple[Sequence[Tensor], Sequence[Tensor]],
    weight: AdaptiveWeight,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """Return the gradient ratio at `parameter` of the whole batch, over all processes.

    `reference` and `other` are (tensors above the parameter, gradients arriving at them); both carry the loss `scale`
    of fp16. A collective call.
    """
    both = torch.stack([gradient_at(parameter, *reference), gradient_at(parameter, *other)]).float()
    mean_over_processes(both)
    return gradient_ratio(both[0], both[1], weight.max, weight.eps * scale)
