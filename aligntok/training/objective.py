"""The losses of a stage: which are active at a step, where they pull, and how strongly (paper, Eq. 1, 4, 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aligntok.errors import ConfigError
from aligntok.registry import LOSSES, check_keywords
from aligntok.training.chain import ENCODER_SIDE, Chain
from aligntok.training.gradient_ratio import Balance, ratio_at

POINTS = (*ENCODER_SIDE, "reconstruction")
_TERM_KEYS = ("weight", "start_step", "balance")


@dataclass(frozen=True)
class Term:
    """One loss of the objective. `weight` (lambda) applies after the gradient ratio, if it is balanced (paper, App. A).

    `start_step` is the first step of the stage that computes it at all.
    """

    name: str
    weight: float = 1.0
    start_step: int = 0
    balance: Balance | None = None


class Objective(nn.Module):
    """All losses of a stage, built from ``{name: dict(type=..., weight=..., start_step=..., balance=..., ...)}``.

    Keywords that are not the term's (weight, start_step, balance) go to the loss. Raises ConfigError for a balance at
    a part that is not `trains`, for an unknown place to balance at, or a loss that pulls on an unknown tensor.
    """

    def __init__(self, losses: Mapping[str, Mapping[str, Any]], trains: tuple[str, ...]) -> None:
        super().__init__()
        self.terms: list[Term] = []
        self.losses = nn.ModuleDict()
        for name, config in losses.items():
            if not isinstance(config, Mapping) or "type" not in config:
                raise ConfigError(
                    f"loss '{name}' must be dict(type=..., ...), not {config!r}; known: {', '.join(LOSSES)}"
                )
            options = dict(config)
            term = _build_term(name, options, trains)
            self.terms.append(term)
            keywords = {key: value for key, value in options.items() if key != "type"}
            check_keywords(LOSSES.get(options["type"]), keywords, who=f"loss '{name}'", also=_TERM_KEYS)
            self.losses[name] = LOSSES.build(options)
            point = self.losses[name].at
            if point not in POINTS:
                raise ConfigError(f"loss '{name}' pulls on '{point}'; a loss can pull on {', '.join(POINTS)}")
            if point == "reconstruction" and term.balance and term.balance.at != "decoder":
                raise ConfigError(f"loss '{name}' pulls on the image, so it balances at 'decoder', not at 'encoder'")

    def active(self, step: int) -> list[Term]:
        """Return the terms that step `step` of the stage computes."""
        return [term for term in self.terms if step >= term.start_step]

    def loss(self, term: Term) -> Any:
        """Return the loss module of a term."""
        return self.losses[term.name]

    def needs(self, name: str, step: int | None = None) -> bool:
        """Tell whether a loss takes the input `name` at a step, or ever."""
        terms = self.terms if step is None else self.active(step)
        return any(name in self.loss(term).inputs for term in terms)

    def pull_on_image(
        self, chain: Chain, inputs: Mapping[str, Tensor], last_layer: nn.Parameter, step: int, scale: Tensor | float
    ) -> dict[str, Tensor]:
        """Leave at the reconstruction the combined gradient of the losses on it; return what to log.

        A balanced loss is weighed against all unbalanced ones together, at the decoder's last layer.
        """
        terms = [term for term in self.active(step) if self.loss(term).at == "reconstruction"]
        leaf = chain.leaves["reconstruction"]
        logs: dict[str, Tensor] = {}
        plain = [term for term in terms if term.balance is None]
        total = sum((term.weight * self._value(term, inputs, logs) for term in plain), start=leaf.new_zeros(()))
        shared = any("fake_logits" in self.loss(term).inputs for term in plain)  # the discriminator's side walks it too
        reference = _gradient(total, leaf, self._loss_weights(plain), scale, keep_graph=shared)
        chain.add("reconstruction", reference)
        for term in (term for term in terms if term.balance is not None):
            self._pull_balanced(term, chain, inputs, ("reconstruction", reference), last_layer, scale, logs)
        return logs

    def pull_on_encoder(
        self,
        chain: Chain,
        inputs: Mapping[str, Tensor],
        last_layer: nn.Parameter | None,
        step: int,
        scale: Tensor | float,
    ) -> dict[str, Tensor]:
        """Add, to what arrives from the image, the gradients of the losses on latents, moments and features.

        A balanced loss is weighed against everything that arrives from the image (L_rec, with the GAN's share), at
        the encoder's last layer. Returns what to log.
        """
        terms = [term for term in self.active(step) if self.loss(term).at in ENCODER_SIDE]
        logs: dict[str, Tensor] = {}
        from_image = ("latents", chain.arriving.get("latents", torch.zeros_like(chain.leaves["latents"])))
        for term in terms:
            point = self.loss(term).at
            if not chain.leaves[point].requires_grad:
                with torch.no_grad():
                    self._value(term, inputs, logs)
            elif term.balance is None:
                value = term.weight * self._value(term, inputs, logs)
                chain.add(point, _gradient(value, chain.leaves[point], self._loss_weights([term]), scale))
            else:
                assert last_layer is not None  # checked when the term was built
                self._pull_balanced(term, chain, inputs, from_image, last_layer, scale, logs)
        return logs

    def _pull_balanced(
        self,
        term: Term,
        chain: Chain,
        inputs: Mapping[str, Tensor],
        reference: tuple[str, Tensor],
        last_layer: nn.Parameter,
        scale: Tensor | float,
        logs: dict[str, Tensor],
    ) -> None:
        assert term.balance is not None
        point, parameters = self.loss(term).at, self._loss_weights([term])
        found = torch.autograd.grad(
            self._value(term, inputs, logs) * scale, [chain.leaves[point], *parameters], retain_graph=True
        )
        above, arriving = chain.tensors[reference[0]], reference[1]
        ratio = ratio_at(
            last_layer,
            ([above], [arriving.to(above.dtype)]),
            ([chain.tensors[point]], [found[0].to(chain.tensors[point].dtype)]),
            replace(term.balance, eps=term.balance.eps * scale),  # both gradients carry the scale
        )
        logs[f"ratio/{term.name}"] = ratio
        weight = term.weight * ratio
        chain.add(point, weight * found[0])
        _accumulate(parameters, [weight * gradient for gradient in found[1:]])

    def _value(self, term: Term, inputs: Mapping[str, Tensor], logs: dict[str, Tensor]) -> Tensor:
        loss = self.loss(term)
        value = loss(*(inputs[name] for name in loss.inputs))
        logs[f"loss/{term.name}"] = value.detach()
        return value

    def _loss_weights(self, terms: list[Term]) -> list[nn.Parameter]:
        return [p for term in terms for p in self.loss(term).parameters() if p.requires_grad]


def _build_term(name: str, options: dict[str, Any], trains: tuple[str, ...]) -> Term:
    """Take the term's own keywords out of `options`; what is left is the loss's."""
    own = {key: options.pop(key) for key in _TERM_KEYS if key in options}
    for key, kinds in (("weight", (int, float)), ("start_step", (int,))):
        if not isinstance(own.get(key, 0), kinds):
            raise ConfigError(
                f"loss '{name}': {key}={own[key]!r}; it must be a number" + " of steps" * (kinds == (int,))
            )
    balance = own.pop("balance", None)
    if balance is not None:
        balance = _build_balance(name, balance)
        if balance.at not in ("decoder", "encoder"):
            raise ConfigError(f"loss '{name}' balances at '{balance.at}'; it can balance at 'decoder' or 'encoder'")
        if balance.at not in trains:
            raise ConfigError(
                f"loss '{name}' balances at the {balance.at}'s last layer, but this stage trains only "
                f"{', '.join(trains)}; train the {balance.at}, or set balance=None"
            )
    return Term(name=name, balance=balance, **own)


def _build_balance(name: str, config: Any) -> Balance:
    if not isinstance(config, Mapping) or "at" not in config:
        raise ConfigError(f"balance of loss '{name}' must be dict(at='decoder' or 'encoder', ...), not {config!r}")
    check_keywords(Balance, dict(config), who=f"balance of loss '{name}'")
    return Balance(**config)


def _gradient(
    total: Tensor, leaf: Tensor, parameters: list[nn.Parameter], scale: Tensor | float, keep_graph: bool = False
) -> Tensor:
    """Return the gradient of ``total * scale`` at `leaf`, and add those of `parameters` to their ``.grad``."""
    if not total.requires_grad:
        return torch.zeros_like(leaf)
    found = torch.autograd.grad(total * scale, [leaf, *parameters], retain_graph=keep_graph)
    _accumulate(parameters, found[1:])
    return found[0]


def _accumulate(parameters: list[nn.Parameter], gradients: Any) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
