"""How samples are drawn, as one set of settings: sampler, steps, shift, guidance; and the drawing itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aligntok.diffusion.flow import Velocity
from aligntok.diffusion.guidance import Model, autoguidance, classifier_free
from aligntok.diffusion.samplers import SAMPLERS, generators_from_seeds, sample
from aligntok.diffusion.times import time_grid
from aligntok.errors import ConfigError, at_least, unknown
from aligntok.rng import batch_noise

#: Samplers whose steps follow from the whole batch: samples that must not depend on one another are drawn one by one.
COUPLING = ("dopri5",)


@dataclass(frozen=True)
class Sampling:
    """Settings of a sampler and its guidance; the defaults are the paper's without guidance: Euler, 30 steps.

    steps: steps of the solver, on a grid of steps + 1 times (published LightningDiT code counts the times).
    sampler: a name of :data:`aligntok.diffusion.samplers.SAMPLERS`; `options` are its own keywords.
    shift: of the grid, below 1 towards noise. cfg_scale: 1 is no guidance; cfg_interval: (lo, hi) of t where there is
    any, t = 0 being noise; cfg_channels: only the first so many latent channels are guided, None for all;
    preserve_energy: EP-CFG. Raises ConfigError for values that cannot work.
    """

    steps: int = 30
    sampler: str = "euler"
    shift: float = 1.0
    cfg_scale: float = 1.0
    cfg_interval: tuple[float, float] | None = None
    cfg_channels: int | None = None
    preserve_energy: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cfg_interval is not None:  # JSON and configs have lists
            object.__setattr__(self, "cfg_interval", tuple(float(t) for t in self.cfg_interval))
        at_least(1, "sampling", steps=self.steps)
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampling: {unknown('sampler', self.sampler, SAMPLERS)}")
        known = [name for name in _options(self.sampler) if name != "randomness"]
        for name in self.options:
            if name not in known:
                raise ConfigError(f"sampling: sampler '{self.sampler}' has {unknown('option', name, known)}")
        self.times()
        self.velocity(_nothing, torch.zeros(1, dtype=torch.long), 0)

    def times(self) -> Tensor:
        """Return the grid (steps + 1,)."""
        return time_grid(self.steps + 1, self.shift)

    def velocity(self, model: Model, y: Tensor, null: int | None, weak_model: Model | None = None) -> Velocity:
        """Return the guided velocity of `model` for labels y (N,): away from `null`, or from `weak_model` if given."""
        if weak_model is not None:
            return autoguidance(model, weak_model, y, self.cfg_scale, **self._guided())
        return classifier_free(model, y, null, self.cfg_scale, **self._guided())

    def _guided(self) -> dict[str, Any]:
        return {
            "interval": self.cfg_interval,
            "channels": self.cfg_channels,
            "preserve_energy": self.preserve_energy,
        }


def draw_samples(
    model: Model,
    y: Tensor,
    seeds: Sequence[int],
    shape: Sequence[int],
    sampling: Sampling,
    null: int | None = None,
    weak_model: Model | None = None,
) -> Tensor:
    """Draw a sample (C, h, w) = `shape` for each label of y (N,) and seed: float32 (N, C, h, w) on y's device.

    A sample depends on its own label and seed alone, up to the rounding of a batch's arithmetic: all its random
    numbers come from a generator of its own on the CPU, and samplers that couple a batch draw one sample at a time.
    """
    if sampling.sampler in COUPLING and len(seeds) > 1:
        one = (
            draw_samples(model, y[i : i + 1], seeds[i : i + 1], shape, sampling, null, weak_model)
            for i in range(len(y))
        )
        return torch.cat(list(one))
    generators = generators_from_seeds(seeds)
    noise = batch_noise(generators, shape).to(y.device)
    options = dict(sampling.options)
    if "randomness" in _options(sampling.sampler):
        options["randomness"] = generators
    velocity = sampling.velocity(model, y, null, weak_model)
    return sample(velocity, noise, sampling.times(), sampling.sampler, **options)


def _options(sampler: str) -> list[str]:
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _nothing(x: Tensor, t: Tensor, y: Any) -> Tensor:
    return x
