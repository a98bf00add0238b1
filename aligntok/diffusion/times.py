"""When: the times a generator is trained at, the grid it is sampled on, and the shift of both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aligntok.errors import ConfigError, unknown

SAMPLINGS = ("uniform", "logit_normal")


def shift_times(times: Tensor, shift: float) -> Tensor:
    """Move times in [0, 1] towards noise (shift < 1) or data (shift > 1); 0 and 1 stay where they are.

    Any shape. Shifts 1 and, as published configs write it, 0 change nothing. Shifting by s and then 1/s gives the
    times back. Raises ConfigError for a shift that is negative or not finite.
    """
    if not (math.isfinite(shift) and shift >= 0):
        raise ConfigError(f"timestep shift {shift}; it must be positive: below 1 towards noise, 0 or 1 for no shift")
    if shift in (0, 1):
        return times
    shifted = shift * times
    return shifted / (shifted + (1 - times))  # s t / (1 + (s - 1) t) (Esser et al. 2024, Eq. 23), exact at 0 and 1


def shift_of(shift: float | str, size: Sequence[int], model: object) -> float:
    """Return a shift as a number: of "length", that of latents of `size` (h, w) in a model of patches, `patch_size`."""
    return length_shift(math.prod(size) // getattr(model, "patch_size", 1) ** 2) if shift == "length" else float(shift)


def length_shift(tokens: int) -> float:
    """Return the shift of so many tokens of an image: .6065 of 256, .5326 of 1024, .3166 of 4096.

    More tokens show more of an image through the same noise, so that times move towards noise.
    """
    return math.exp(-(0.5 + 0.65 * (tokens - 256) / 3840))  # exp(-mu), mu from .5 at 256 to 1.15 at 4096 (FLUX)


def time_grid(points: int, shift: float = 1.0, start: float = 0.0, end: float = 1.0) -> Tensor:
    """Return the times of a sampler, evenly spaced and then shifted: float32, (points,), increasing from start to end.

    `points` is what the published code calls num_sampling_steps: it makes points - 1 steps. `start` and `end` are
    times before the shift. Raises ConfigError for fewer than two points, or unless 0 <= start < end <= 1.
    """
    if points < 2:
        raise ConfigError(f"time_grid: points={points} makes {points - 1} steps; at least 1 step, 2 points, is needed")
    if not 0 <= start < end <= 1:
        raise ConfigError(f"time_grid: start={start}, end={end}; they must keep 0 <= start < end <= 1")
    return shift_times(torch.linspace(start, end, points, dtype=torch.float32), shift)


def sample_times(
    numbers: Tensor, sampling: str = "logit_normal", *, mean: float = 0.0, scale: float = 1.0, shift: float = 1.0
) -> Tensor:
    """Turn uniform random numbers into training times: float32 in [0, 1], of the shape of `numbers`.

    numbers: in [0, 1), one a sample; each gives its own time alone, however a batch is split over processes.
    sampling: "uniform", or "logit_normal", whose logit is normal with `mean` and standard deviation `scale`. The shift
    is applied last. Raises ConfigError for an unknown sampling or a scale that is not positive.
    """
    if sampling not in SAMPLINGS:
        raise ConfigError(f"sample_times: {unknown('sampling', sampling, SAMPLINGS)}")
    if not (scale > 0 and math.isfinite(scale) and math.isfinite(mean)):
        raise ConfigError(f"sample_times: mean={mean}, scale={scale}; both must be finite, the scale above 0")
    if sampling == "uniform":
        return shift_times(numbers.float(), shift)
    normal = torch.special.ndtri(numbers.double())
    return shift_times(torch.sigmoid(mean + scale * normal).float(), shift)  # logit(t) ~ N(mean, scale^2) (id., Eq. 19)
