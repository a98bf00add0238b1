"""The gradient-ratio weights of the adaptive losses (paper, App. A), exact and nearly free.

A step walks the graph once, from the image to the encoder: the gradients of the losses at a tensor are combined there,
and only the combination goes on through the part below. What a weight needs besides is the gradient of each loss at
one last layer, which lies right below the tensor, so no part is walked a second time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from aligntok.distributed import add_up, groups_of, mean_over_processes, number_of_groups, total, world
from aligntok.errors import ConfigError
from aligntok.settings import Positive, settings


@settings(renamed={"max_ratio": "max", "against": "reference"})
class AdaptiveWeight:
    """A loss's weight by a ratio of gradients."""

    at: Literal["decoder", "encoder"]
    """The part at whose last layer the gradients are taken."""
    max: Annotated[float, Field(ge=1e-9, le=1e30)] = 1e4
    """The largest weight, in the unit of the losses: of means over C x H x W values, that of sums by C x H x W."""
    eps: Annotated[float, Field(ge=0, le=1)] = 1e-8
    """The addition to the divisor."""
    images: Positive | None = None
    """Images of a group of the batch that has a ratio of its own; None: the whole batch. Norms shrink as images average
    out, so the ratio of 64 images is not that of 8."""
    reference: tuple[str, ...] | None = None
    """The losses on the image that it is held against, together and with their weights; None: all that a loss on the
    image can be held against, those without an adaptive weight, and everything that arrives from the image for a loss
    on the encoder's side."""


def gradient_ratio(reference: Tensor, other: Tensor, max: float = 1e4, eps: float | Tensor = 1e-8) -> Tensor:
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
    (found,) = _arriving([parameter], outputs, gradients, parameter)
    return found


def _arriving(
    at: Sequence[Tensor], outputs: Sequence[Tensor], gradients: Sequence[Tensor], weight: nn.Parameter
) -> list[Tensor]:
    """Return the gradients of tensors of a last layer, whose `weight` an error tells of."""
    try:
        return list(torch.autograd.grad(outputs, at, gradients, retain_graph=True))
    except RuntimeError as error:
        if "not have been used in the graph" not in str(error):
            raise
        raise ConfigError(
            f"a gradient ratio is taken at a last layer of shape {tuple(weight.shape)} that has no part in what the "
            "losses pull on; give the component the last_layer that its output comes from, or set adaptive_weight=None"
        ) from error


@dataclass
class LastLayer:
    """The last layer of a part, and what it was given and gave in a forward pass, where that is kept."""

    weight: nn.Parameter
    layer: nn.Module | None = None
    copies: dict[str, Tensor] = field(default_factory=dict)
    calls: list[tuple[tuple[Any, ...], Tensor]] = field(default_factory=list)

    def pulls(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return what arrives at what the layer gave when `outputs` receive `gradients`; the graph is kept.

        Raises ConfigError where that was not kept, does not go by image, or has no part in the outputs.
        """
        images = len(outputs[0])
        if not self.calls or any(len(given) % images for _, given in self.calls):
            gives = "rows that are not those of images" if self.calls else "nothing by a call of its own"
            raise ConfigError(
                f"a gradient ratio of groups of images is taken at a last layer of shape {tuple(self.weight.shape)} "
                f"that gives {gives}; give the component another last_layer, or set adaptive_weight.images to None"
            )
        return _arriving([given for _, given in self.calls], outputs, gradients, self.weight)

    def gradients(self, pulls: Sequence[Sequence[Tensor]], images: slice, of: int) -> Tensor:
        """Return the gradients (len(pulls), *weight) of some `images` of a batch `of` so many, for each of `pulls`.

        The layer is called again, on these images alone; nothing else of the network takes part.
        """
        layer, copies = self.layer, self.copies
        assert layer is not None
        (weight,) = (copy for copy in copies.values() if copy.requires_grad)
        rows = [slice(images.start * len(out) // of, images.stop * len(out) // of) for _, out in self.calls]
        cut_calls = (tuple(x[cut] for x in args) for (args, _), cut in zip(self.calls, rows, strict=True))
        again = [functional_call(layer, copies, args) for args in cut_calls]
        cut_pulls = ([x[cut] for x, cut in zip(pull, rows, strict=True)] for pull in pulls)
        found = [torch.autograd.grad(again, [weight], pull, retain_graph=True)[0] for pull in cut_pulls]
        return torch.stack(found).float()


@contextmanager
def last_layers_of(parts: Mapping[str, nn.Module], keep: Collection[str]) -> Iterator[dict[str, LastLayer]]:
    """Yield a dict that has, at the end, the last layers of parts that ran forward meanwhile, by the parts' names.

    Of the parts in `keep` with what their layers were given and gave.
    """
    found: dict[str, LastLayer] = {}
    kept: dict[str, tuple[nn.Module, list[Any]]] = {}
    with ExitStack() as hooks:
        for name in keep:
            weight: Any = parts[name].last_layer
            calls: list[tuple[tuple[Any, ...], Tensor]] = []
            layer = next(m for m in parts[name].modules() if any(p is weight for p in m._parameters.values()))
            hook = layer.register_forward_hook(lambda _, args, out, calls=calls: calls.append((args, out)))
            hooks.callback(hook.remove)  # what activation checkpointing calls again is not the step's graph
            kept[name] = layer, calls
        yield found
    for name, part in parts.items():
        whole: Any = part.last_layer  # as processes that share it out have it after the forward pass
        found[name] = LastLayer(whole)
        if name in kept:
            layer, calls = kept[name]
            copies = {key: p.detach().clone().requires_grad_(p is whole) for key, p in layer.named_parameters()}
            found[name] = LastLayer(whole, layer, copies, calls)


#: Tensors above a last layer, and the gradients arriving at them.
Pull: TypeAlias = tuple[Sequence[Tensor], Sequence[Tensor]]


class Ratio(NamedTuple):
    """A gradient ratio: the mean of its groups', that of each image's group (N,), and the share that `eps` left."""

    mean: Tensor
    of_images: Tensor
    kept: Tensor


def ratio_at(
    last: LastLayer, reference: Pull, other: Pull, weight: AdaptiveWeight, scale: Tensor | float = 1.0
) -> Ratio:
    """Return the gradient ratio at a last layer, of the whole batch over all processes, or of each group of images.

    Of `reference` and `other` both carry the loss `scale` of fp16. A collective call.
    """
    of = len(other[0][0])
    if weight.images is None:
        both = torch.stack([gradient_at(last.weight, *reference), gradient_at(last.weight, *other)]).float()
        mean, kept = _ratio(mean_over_processes(both), weight, scale)
        return Ratio(mean, mean.expand(of), kept)
    pulls, groups = [last.pulls(*reference), last.pulls(*other)], groups_of(of, weight.images)
    found = torch.zeros(number_of_groups(of, weight.images), 2, device=last.weight.device)
    for group in groups:
        # Of a mean over the group's images, as a process with these alone has it.
        both = last.gradients(pulls, group.images, of) * (of / weight.images)
        if len(group.processes) > 1:
            both = add_up(both, group.processes)
        if group.processes[0] == world()[0]:
            found[group.number] = _ratio(both, weight, scale)
    found = total(found)
    of_images = [found[group.number, 0].expand(group.images.stop - group.images.start) for group in groups]
    mean, kept = found.mean(dim=0)
    return Ratio(mean, torch.cat(of_images), kept)


def _ratio(both: Tensor, weight: AdaptiveWeight, scale: Tensor | float) -> Tensor:
    eps, norm = weight.eps * scale, both[1].norm()
    return torch.stack([gradient_ratio(both[0], both[1], weight.max, eps), norm / (norm + eps)])
