"""The two optimisers of a stage: one for the autoencoder (and losses with weights), one for the discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import Tensor, nn

from aligntok.errors import AlignTokError, ConfigError, suggestion
from aligntok.registry import check_keywords

SIDES = ("autoencoder", "discriminator")


def check_optimizer(config: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError unless ``dict(type=..., ...)`` names an optimiser and keywords that it takes."""
    optimizer = OPTIMIZERS.get(str(config.get("type")))
    if optimizer is None:
        known = sorted(OPTIMIZERS.module_dict)
        raise ConfigError(
            f"{where}: no optimiser '{config.get('type')}'; {suggestion(str(config.get('type')), known)}"
            f"known: {', '.join(known)}"
        )
    options = {key: value for key, value in config.items() if key != "type"}
    check_keywords(optimizer, options, who=f"{where}: optimiser '{config['type']}'")


class PartOptimizers(OptimWrapperDict):
    """Steps both sides at once, after looking at the gradients: a step that is not finite is left out, and counted.

    `max_skipped` steps left out in a row stop the training (the last checkpoint is from before them).
    """

    def __init__(self, max_skipped: int, clip_grad_norm: float | None, **sides: OptimWrapper) -> None:
        super().__init__(**sides)
        self.max_skipped = max_skipped
        self.clip_grad_norm = clip_grad_norm
        self.skipped_in_a_row = 0

    def step_parts(self, parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Apply the gradients of `parts` and clear them; return each part's gradient norm (before clipping)."""
        norms = {name: _grad_norm(part) for name, part in parts.items()}
        sides = {side: [n for n in norms if (n == "discriminator") == (side == "discriminator")] for side in SIDES}
        finite = bool(torch.stack(list(norms.values())).isfinite().all())
        for side, names in sides.items():
            present = any(p.grad is not None for name in names for p in parts[name].parameters())
            if finite and present and side in self:
                self._clip([parts[name] for name in names], [norms[name] for name in names])
                self[side].step()
            if side in self:
                self[side].zero_grad()
        self._count(finite, norms)
        skipped = torch.tensor(float(not finite))
        return {**{f"grad_norm/{name}": norm for name, norm in norms.items()}, "skipped_step": skipped}

    def _clip(self, parts: list[nn.Module], norms: list[Tensor]) -> None:
        if self.clip_grad_norm is None:
            return
        gradients = [p.grad for part in parts for p in part.parameters() if p.grad is not None]
        factor = self.clip_grad_norm / (torch.stack(norms).norm() + 1e-6)
        torch._foreach_mul_(gradients, factor.clamp(max=1.0))

    def _count(self, finite: bool, norms: Mapping[str, Tensor]) -> None:
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row > self.max_skipped:
            broken = ", ".join(name for name, norm in norms.items() if not bool(norm.isfinite()))
            raise AlignTokError(
                f"{self.skipped_in_a_row} steps in a row had gradients that are not finite (parts: {broken}); "
                f"max_skipped_steps allows {self.max_skipped}. Training stopped; the last checkpoint is from before. "
                "Lower the learning rate, set clip_grad_norm, or train in fp32"
            )


def _grad_norm(part: nn.Module) -> Tensor:
    gradients = [p.grad for p in part.parameters() if p.grad is not None]
    if not gradients:  # on the part's device, so that norms can be stacked
        return torch.zeros((), device=next(part.parameters()).device)
    return torch.nn.utils.get_total_norm(gradients)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PartOptimizersConstructor:
    """mmengine's constructor protocol: builds :class:`PartOptimizers` for a model that has ``trained_parts()``.

    The config has one optimiser config a side (`autoencoder`, `discriminator`), `clip_grad_norm` and `max_skipped`.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Any = None) -> None:
        self.config = dict(optim_wrapper_cfg)

    def __call__(self, model: Any) -> PartOptimizers:
        parts = getattr(model, "module", model).trained_parts()
        sides: dict[str, OptimWrapper] = {}
        for side in SIDES:
            chosen = [part for name, part in parts.items() if (name == "discriminator") == (side == "discriminator")]
            parameters = [p for part in chosen for p in part.parameters() if p.requires_grad]
            if parameters:
                optimizer = OPTIMIZERS.build({**self.config[side], "params": parameters})
                sides[side] = OptimWrapper(optimizer)
        return PartOptimizers(self.config["max_skipped"], self.config["clip_grad_norm"], **sides)
