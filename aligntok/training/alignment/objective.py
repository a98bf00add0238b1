"""The losses of a stage: which are active at a step, where they pull, and how strongly (paper, Eq. 1, 4, 5)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.profiler import record_function

from aligntok.annotations import check_keywords
from aligntok.device import has_values
from aligntok.errors import ConfigError
from aligntok.registry import LOSSES
from aligntok.settings import Count, read, settings
from aligntok.training.alignment.gradient_ratio import AdaptiveWeight, ratio_at
from aligntok.training.alignment.graph import ENCODER_SIDE, ForwardGraph

logger = logging.getLogger("aligntok.training")
POINTS = (*ENCODER_SIDE, "reconstruction")


@settings(renamed={"balance": "adaptive_weight"})
class LossTerm:
    """One loss of the objective. `weight` (lambda) applies after the gradient ratio, if it is balanced (paper, App. A).

    `start_step` is the first step of the stage that computes it at all.
    """

    name: str
    weight: Annotated[float, Field(ge=0, le=1e7)] = 1.0
    start_step: Count = 0
    adaptive_weight: AdaptiveWeight | None = None

    @property
    def reference(self) -> tuple[str, ...] | None:
        """The losses that it is held against; None: all that it can be, or no adaptive weight."""
        return self.adaptive_weight.reference if self.adaptive_weight else None


_TERM_KEYS = ("weight", "start_step", "adaptive_weight", "balance")  # the last for who still uses it to be told


class Objective(nn.Module):
    """All losses of a stage, built from ``{name: dict(type=..., weight=..., start_step=...,
    adaptive_weight=..., ...)}``.

    Keywords that are not the term's (weight, start_step, adaptive_weight) go to the loss. Raises ConfigError for an
    adaptive weight at a part that is not `trainable`, or on the other side of the latents, a loss that pulls on an
    unknown tensor, and for several that take the discriminator's logits.
    """

    def __init__(self, losses: Mapping[str, Mapping[str, Any]], trainable: tuple[str, ...]) -> None:
        super().__init__()
        self.terms: list[LossTerm] = []
        self.losses = nn.ModuleDict()
        for name, config in losses.items():
            if not isinstance(config, Mapping) or "type" not in config:
                raise ConfigError(
                    f"loss '{name}' must be dict(type=..., ...), not {config!r}; known: {', '.join(LOSSES)}"
                )
            own = {key: config[key] for key in _TERM_KEYS if key in config}
            term = read(LossTerm, {"name": name, **own}, f"loss '{name}'")
            at = term.adaptive_weight.at if term.adaptive_weight else None
            if at is not None and at not in trainable:
                raise ConfigError(
                    f"loss '{name}' has an adaptive_weight at the {at}'s last layer, but this stage trains only "
                    f"{', '.join(trainable)}; train the {at}, or set adaptive_weight=None"
                )
            self.terms.append(term)
            options = {key: value for key, value in config.items() if key not in own}
            keywords = {key: value for key, value in options.items() if key != "type"}
            check_keywords(LOSSES.get(options["type"]), keywords, who=f"loss '{name}'", also=_TERM_KEYS)
            self.losses[name] = LOSSES.build(options)
            point = self.losses[name].at
            if point not in POINTS:
                raise ConfigError(f"loss '{name}' pulls on '{point}'; a loss can pull on {', '.join(POINTS)}")
            place = "decoder" if point == "reconstruction" else "encoder"
            if at not in (None, place):
                pulled = "image" if point == "reconstruction" else point
                raise ConfigError(
                    f"loss '{name}' pulls on the {pulled}, so its adaptive_weight is at='{place}', not '{at}'"
                )
        for term in self.terms:
            self._check_references(term)
        self._check_adversarial()

    def _check_adversarial(self) -> None:
        """Raise ConfigError for several losses that take the discriminator's logits, or one that cannot train it."""
        taking = [term.name for term in self.terms if "fake_logits" in self.loss(term).inputs]
        if len(taking) > 1:
            raise ConfigError(
                f"losses {', '.join(taking)} all take the discriminator's logits, and one trains it; set the others to "
                "None"
            )
        if taking and not hasattr(self.losses[taking[0]], "discriminator_loss"):
            raise ConfigError(
                f"loss '{taking[0]}' takes the discriminator's logits but has no discriminator_loss(real_logits, "
                "fake_logits), by which the discriminator is trained; give it one, or take 'gan'"
            )

    def _check_references(self, term: LossTerm) -> None:
        """Raise ConfigError unless what the term is held against can be known before its own ratio is."""
        reference = term.reference
        if reference is None:
            return
        on_image = self.loss(term).at == "reconstruction"
        allowed = [
            other.name
            for other in self.terms
            if self.loss(other).at == "reconstruction" and not (on_image and other.adaptive_weight)
        ]
        unknown = [name for name in reference if name not in allowed]
        if unknown or not reference:
            raise ConfigError(
                f"loss '{term.name}': adaptive_weight.reference={list(reference)}; name one or more of the losses on "
                f"the image{' without an adaptive weight' if on_image else ''}: {', '.join(allowed) or 'none'}"
            )

    def active(self, step: int) -> list[LossTerm]:
        """Return the terms that step `step` of the stage computes."""
        return [term for term in self.terms if step >= term.start_step]

    def loss(self, term: LossTerm) -> Any:
        """Return the loss module of a term."""
        return self.losses[term.name]

    def parts_with_groups(self) -> set[str]:
        """Return the parts at whose last layers groups of images have ratios of their own."""
        return {term.adaptive_weight.at for term in self.terms if term.adaptive_weight and term.adaptive_weight.images}

    def needs(self, name: str, step: int | None = None) -> bool:
        """Tell whether a loss takes the input `name` at a step, or ever."""
        terms = self.terms if step is None else self.active(step)
        return any(name in self.loss(term).inputs for term in terms)

    def backward_to_image(self, graph: ForwardGraph) -> None:
        """Leave at the reconstruction the combined gradient of the losses on it.

        A balanced loss is weighed against all unbalanced ones together, or those its reference names, at the decoder's
        last layer. What losses on the encoder's side are to be weighed against is left in ``graph.references``.
        """
        active = self.active(graph.step)
        terms = [term for term in active if self.loss(term).at == "reconstruction"]
        leaf = graph.leaves["reconstruction"]
        pulls = {term.name: self._pull(term, graph) for term in terms if term.adaptive_weight is None}
        unbalanced = _summed(pulls, None, leaf)
        graph.add("reconstruction", unbalanced)
        for term in (term for term in terms if term.adaptive_weight is not None):
            reference = unbalanced if term.reference is None else _summed(pulls, term.reference, leaf)
            pulls[term.name] = self._pull_balanced(term, graph, ("reconstruction", reference))
        for term in (term for term in active if self.loss(term).at in ENCODER_SIDE):
            # Without other losses on the image, what the reference pulls with is what is going to arrive anyway.
            if term.reference is not None and not {*pulls} <= {*term.reference}:  # one more walk of the decoder
                image, latents = graph.tensors["reconstruction"], graph.leaves["latents"]
                gradient = _summed(pulls, term.reference, leaf).to(image.dtype)
                (graph.references[term.name],) = torch.autograd.grad(image, [latents], gradient, retain_graph=True)

    def backward_to_encoder(self, graph: ForwardGraph) -> None:
        """Add, to what arrives from the image, the gradients of the losses on latents, moments and features.

        A balanced loss is weighed against everything that arrives from the image (L_rec, with the GAN's share), or
        against what its reference names, at the encoder's last layer.
        """
        from_image = graph.arriving.get("latents", torch.zeros_like(graph.leaves["latents"]))
        for term in (term for term in self.active(graph.step) if self.loss(term).at in ENCODER_SIDE):
            point = self.loss(term).at
            if not graph.leaves[point].requires_grad:
                with torch.no_grad():
                    self._value(term, graph)
            elif term.adaptive_weight is None:
                graph.add(point, self._pull(term, graph))
            else:
                self._pull_balanced(term, graph, ("latents", graph.references.get(term.name, from_image)))

    def _pull(self, term: LossTerm, graph: ForwardGraph) -> Tensor:
        """Return the gradient of a loss with its weight at the tensor it pulls on; its own parameters get theirs."""
        loss, total = self.loss(term), term.weight * self._value(term, graph)
        leaf, parameters = graph.leaves[loss.at], _trained(loss)
        if not total.requires_grad:
            return torch.zeros_like(leaf)
        shared = "fake_logits" in loss.inputs  # the discriminator's side walks that graph too
        if parameters:
            _walk(parameters, total * graph.scale)
        (found,) = torch.autograd.grad(total * graph.scale, [leaf], retain_graph=shared)
        return found

    def _pull_balanced(self, term: LossTerm, graph: ForwardGraph, reference: tuple[str, Tensor]) -> Tensor:
        """Add the gradient of a balanced loss to what arrives at the tensor it pulls on, and return it.

        `reference`: the name of a tensor above the last layer, and what arrives there to be weighed against.
        """
        assert term.adaptive_weight is not None
        loss = self.loss(term)
        parameters, below = _trained(loss), graph.tensors[loss.at]
        with record_function("discriminator" if "fake_logits" in loss.inputs else "losses"):
            value = self._value(term, graph) * graph.scale
            (found,) = torch.autograd.grad(value, [graph.leaves[loss.at]], retain_graph=True)
        above, arriving = graph.tensors[reference[0]], reference[1]
        both = ([above], [arriving.to(above.dtype)]), ([below], [found.to(below.dtype)])
        ratio = ratio_at(graph.last_layers[term.adaptive_weight.at], *both, term.adaptive_weight, graph.scale)
        _tell_of_eps(term, graph.step, ratio.kept)
        graph.logs[f"ratio/{term.name}"] = ratio.mean
        pull = term.weight * ratio.of_images.view(-1, *[1] * (found.dim() - 1)) * found
        graph.add(loss.at, pull)
        if parameters:
            _walk(parameters, value, term.weight * ratio.mean)
        return pull

    def _value(self, term: LossTerm, graph: ForwardGraph) -> Tensor:
        value: Tensor = self.value(term, graph)
        graph.logs[f"loss/{term.name}"] = value.detach()
        return value

    def value(self, term: LossTerm, graph: ForwardGraph) -> Any:
        """Return the value of a loss, without its weight."""
        loss = self.loss(term)
        return loss(*(graph.inputs[name] for name in loss.inputs))


def _tell_of_eps(term: LossTerm, step: int, kept: Tensor) -> None:
    """Say, now and then as asking takes time, that the addition to a ratio's divisor is no small one."""
    if step % 100 == 0 and has_values(kept) and 0 < (share := float(kept)) < 0.99:
        logger.warning(
            "loss '%s': its gradient is so small at the last layer that adaptive_weight.eps leaves %s of its weight; "
            "make eps smaller",
            term.name,
            f"{share:.2g}",
        )


def _trained(loss: nn.Module) -> list[nn.Parameter]:
    return [p for p in loss.parameters() if p.requires_grad]


def _summed(pulls: Mapping[str, Tensor], names: Collection[str] | None, like: Tensor) -> Tensor:
    """Return the sum of the gradients of the losses `names` (None: of all), zero without any; shape of `like`."""
    chosen = [pull for name, pull in pulls.items() if names is None or name in names]
    return sum(chosen[1:], start=chosen[0]) if chosen else torch.zeros_like(like)


def _walk(parameters: list[nn.Parameter], value: Tensor, gradient: Tensor | None = None) -> None:
    """Give a loss's own parameters their gradients, in a backward pass that processes notice; its graph is kept."""
    value.backward(gradient, retain_graph=True, inputs=parameters)
