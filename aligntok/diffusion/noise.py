"""Random numbers that belong to a sample: its seed fixes them, not the batch, process or device it is sampled on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from aligntok.errors import ConfigError
from aligntok.rng import batch_noise, rng

#: One generator a sample, advanced by each draw; or the numbers themselves, (draws, N, ...).
Randomness = Sequence[torch.Generator] | Tensor


def generators_from_seeds(seeds: Iterable[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """Return a generator a seed. On the CPU, the default, the numbers are the same whatever the sampling runs on."""
    return [rng("noise", seed, device=device) for seed in seeds]


def step_noise(randomness: Randomness, number: int, like: Tensor) -> Tensor:
    """Return the numbers of draw `number` (0, 1, ...), of the shape, type and device of `like` (N, ...)."""
    drawn = randomness[number] if isinstance(randomness, Tensor) else batch_noise(randomness, like.shape[1:])
    return drawn.to(like)


def check_randomness(who: str, randomness: Randomness | None, draws: int, like: Tensor) -> Randomness:
    """Return `randomness`; ConfigError unless it serves `draws` draws of the shape of `like` (N, ...)."""
    wanted = f"{len(like)} generators, one a sample, or a tensor {(draws, *like.shape)}"
    if randomness is None:
        raise ConfigError(f"{who} draws random numbers, but randomness is None; give {wanted}")
    if isinstance(randomness, Tensor):
        if tuple(randomness.shape) != (draws, *like.shape):
            raise ConfigError(f"{who}: randomness is a tensor {tuple(randomness.shape)}; give {wanted}")
    elif isinstance(randomness, torch.Generator) or len(randomness) != len(like):
        given = 1 if isinstance(randomness, torch.Generator) else len(randomness)
        raise ConfigError(f"{who}: randomness is {given} generators; give {wanted}")
    return randomness
