"""Drawing samples, as settings of sampling say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aligntok.diffusion.flow import Velocity
from aligntok.diffusion.guidance import Given, Model, autoguidance, classifier_free, rows_of
from aligntok.diffusion.samplers import generators_from_seeds, options_of, sample
from aligntok.diffusion.settings import Sampling
from aligntok.diffusion.times import shift_of, shift_times, time_grid
from aligntok.errors import ConfigError
from aligntok.rng import batch_noise

#: Samplers whose steps follow from the whole batch: samples that must not depend on one another are drawn one by one.
COUPLING = ("dopri5",)


def check_sampling(sampling: Sampling) -> None:
    """Raise ConfigError for settings that cannot work."""
    options_of(sampling.sampler, sampling.options, without="randomness")
    even: Any = np.linspace(0, 1, sampling.steps + 1, dtype=np.float32)  # where no tensor has values, too
    if not (np.diff(shift_times(even, shift_of(sampling.shift, (1, 1), None))) > 0).all():
        raise ConfigError(
            f"steps={sampling.steps} with shift={sampling.shift}: neighbouring times are the same in float32; give "
            "fewer steps, or a shift nearer to 1"
        )
    guided_velocity(sampling, _nothing, torch.zeros(1, dtype=torch.long), 0)


def times(sampling: Sampling, size: Sequence[int] = (16, 16), model: object = None) -> Tensor:
    """Return the grid (steps + 1,), which with shift="length" follows from the latents' `size` (h, w) and the model."""
    return time_grid(sampling.steps + 1, shift_of(sampling.shift, size, model))


def guided_velocity(
    sampling: Sampling, model: Model, y: Given, null: Given | int | None, weak_model: Model | None = None
) -> Velocity:
    """Return the guided velocity of `model` for y, N rows: away from `null`, or from `weak_model` if given."""
    how: dict[str, Any] = {
        "interval": sampling.cfg_interval,
        "channels": sampling.cfg_channels,
        "preserve_energy": sampling.preserve_energy,
    }
    if weak_model is not None:
        return autoguidance(model, weak_model, y, sampling.cfg_scale, **how)
    return classifier_free(model, y, null, sampling.cfg_scale, **how)


def draw_samples(
    model: Model,
    y: Given,
    seeds: Sequence[int],
    shape: Sequence[int],
    sampling: Sampling,
    null: Given | None = None,
    weak_model: Model | None = None,
) -> Tensor:
    """Draw a sample (C, h, w) = `shape` for each row of y and seed: float32 (N, C, h, w) on y's device.

    y: labels (N,), or tensors of N rows by name; null: N rows like y. A sample depends on its own row and seed alone,
    up to the rounding of a batch's arithmetic: all its random numbers come from a generator of its own on the CPU, and
    samplers that couple a batch draw one sample at a time.
    """
    if sampling.sampler in COUPLING and len(seeds) > 1:
        rows = [slice(i, i + 1) for i in range(len(seeds))]
        none = [None if null is None else rows_of(null, row) for row in rows]
        one = [(rows_of(y, row), seeds[row], shape, sampling, none[row.start], weak_model) for row in rows]
        return torch.cat([draw_samples(model, *each) for each in one])
    generators = generators_from_seeds(seeds)
    where = next(iter(y.values())) if isinstance(y, Mapping) else y
    noise = batch_noise(generators, shape).to(where.device)
    options = dict(sampling.options)
    if "randomness" in options_of(sampling.sampler):
        options["randomness"] = generators
    velocity = guided_velocity(sampling, model, y, null, weak_model)
    return sample(velocity, noise, times(sampling, shape[-2:], model), sampling.sampler, **options)


def _nothing(x: Tensor, t: Tensor, y: Any) -> Tensor:
    return x
