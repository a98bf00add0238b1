"""Exponential moving averages of weights: of a constant decay, or of the power-function profile.

The latter, and averages of any width afterwards, are after Karras et al. 2024, "Analyzing and Improving the Training
Dynamics of Diffusion Models" (EDM2), Sec. 3 and App. C.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aligntok.distributed.parallel import as_shared, to_shares
from aligntok.errors import ConfigError
from aligntok.io.values import count
from aligntok.settings import Positive, settings

PartStates = dict[str, dict[str, Tensor]]
#: Buffers that are averaged as parameters are: an averaged batch norm is used with what it saw on the way.
STATISTICS = ("running_mean", "running_var")
LEAST_DECAY = 0.5  # of a plain average; widths of power-function profiles lie below


@settings
class EMASettings:
    """Weight averages."""

    sigma_rel: list[float] = field(default_factory=lambda: [0.05, 0.10])
    """Relative widths that are kept (EDM2's power-function profile)."""
    decays: list[float] = field(default_factory=list)
    """Decays of plain averages that are kept beside them, such as 0.9999."""
    inference: float = 0.05
    """The width or decay used for validation, pictures, samples, 'ema' starts and what is exported."""
    snapshot_every: Positive | None = None
    """Steps between snapshots for post-hoc widths; None: none."""

    def __post_init__(self) -> None:
        if self.inference not in (*self.sigma_rel, *self.decays):
            raise ConfigError(
                f"ema.inference={self.inference} is not among the averages kept, sigma_rel={self.sigma_rel} and "
                f"decays={self.decays}"
            )
        check_averages(self.sigma_rel, self.decays)
        if self.snapshot_every and not self.sigma_rel:
            raise ConfigError(
                f"ema.snapshot_every={self.snapshot_every} keeps widths, and ema.sigma_rel names none; give two, such "
                "as [0.05, 0.10], or leave it out"
            )


@cache
def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Return the exponent gamma of a profile of relative width sigma_rel (EDM2, Eq. 17 and App. C.1).

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)); the largest real root. Raises ConfigError outside
    (0, 0.28], where the profile is no longer one of positive gamma.
    """
    if not 0 < sigma_rel <= 0.28:
        raise ConfigError(f"EMA width sigma_rel={sigma_rel}; it must lie in (0, 0.28], 0.05 and 0.10 are usual")
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def power_function_beta(sigma_rel: float, step: int) -> float:
    """Return the decay at update number `step` (1, 2, ...): beta(t) = (1 - 1/t)^(gamma + 1) (EDM2, Eq. 19)."""
    return (1 - 1 / step) ** (gamma_from_sigma_rel(sigma_rel) + 1)


def post_hoc_coefficients(
    steps: Sequence[int], sigma_rels: Sequence[float], out_step: int, out_sigma_rel: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the weights, one a snapshot, whose sum is the average of width `out_sigma_rel` at `out_step`.

    `steps` and `sigma_rels` say when and of which width each snapshot is. Least squares between the profiles, all in
    closed form (EDM2, App. C.2), then scaled to sum to one, so that the result is an average; float64, (snapshots,).
    """
    gammas = np.array([gamma_from_sigma_rel(s) for s in sigma_rels])
    times = np.array(steps, dtype=np.float64)
    between = _profile_product(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _profile_product(times, gammas, np.float64(out_step), np.float64(gamma_from_sigma_rel(out_sigma_rel)))
    coefficients = np.linalg.solve(between, wanted)
    return coefficients / coefficients.sum()


def _profile_product(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> Any:
    """Inner product over time of two profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), tau in [0, t]."""
    earlier, gamma_earlier = np.minimum(t_a, t_b), np.where(t_a < t_b, gamma_b, gamma_a)
    later = np.maximum(t_a, t_b)
    # int_0^min ... = (ga+1)(gb+1)/(ga+gb+1) * (min/max)^(gamma of the later) / max, written so that nothing overflows
    ratio = (earlier / later) ** gamma_earlier
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio / later


def synthesise(snapshots: Iterable[tuple[float, PartStates]]) -> PartStates:
    """Return the weighted sum of snapshots, given as (coefficient, state); float64 inside, read one at a time."""
    total: PartStates = {}
    kinds: dict[str, dict[str, torch.dtype]] = {}
    for coefficient, parts in snapshots:
        for part, state in parts.items():
            into = total.setdefault(part, {})
            for name, value in state.items():
                kinds.setdefault(part, {})[name] = value.dtype
                into[name] = into.get(name, torch.zeros((), dtype=torch.float64)) + coefficient * value.double()
    for state in total.values():
        for name in state:
            if name.rpartition(".")[2] == STATISTICS[1]:  # a variance; of the coefficients some are negative
                state[name] = state[name].clamp(min=0)
    return {part: {n: v.to(kinds[part][n]) for n, v in state.items()} for part, state in total.items()}


class WeightAverages:
    """Averages of the trained parts' parameters, and of the running statistics of their norms, several at once.

    A tensor of several names, such as a tied weight, has one average, and all its names in every state. Other buffers
    are not averaged: who loads an average has them as they are.

    `parts` maps a part's name to its module. Each number of `sigma_rels` is the relative width of a power-function
    profile, each of `decays` the constant decay of a plain average (0.9999: published generators'); an average is asked
    for by that number. All begin as the parameters are now, and are float32 on the parameters' device. `step` counts
    updates. Raises ConfigError for widths outside (0, 0.28] and decays outside [0.5, 1), which keeps the two apart.
    """

    def __init__(
        self, parts: Mapping[str, nn.Module], sigma_rels: Iterable[float], decays: Iterable[float] = ()
    ) -> None:
        self.parts = dict(parts)
        self.step = 0
        widths, constant = [*sigma_rels], [*decays]
        check_averages(widths, constant)
        #: The widths and decays that are kept.
        self.kept = tuple(dict.fromkeys([*widths, *constant]))
        self._names: list[tuple[str, str, int]] = []  # part, name in it, and which tensor has that name
        self._places: list[tuple[Any, str, str, str]] = []  # of each tensor: module, key; part and its first name there
        self._find_tensors()
        self._averages = [[tensor.clone() for tensor in self._tensors()] for _ in self.kept]

    def _find_tensors(self) -> None:
        numbers: dict[int, int] = {}
        for part, whole in self.parts.items():
            for path, module in whole.named_modules(remove_duplicate=False):
                trained = {key: p for key, p in module._parameters.items() if p is not None and p.requires_grad}
                seen = {key: b for key, b in module._buffers.items() if b is not None and key in STATISTICS}
                for key, tensor in {**trained, **seen}.items():
                    name = f"{path}.{key}".lstrip(".")
                    if numbers.setdefault(id(tensor), len(self._places)) == len(self._places):
                        self._places.append((module, key, part, name))
                    self._names.append((part, name, numbers[id(tensor)]))

    def _tensors(self) -> list[Tensor]:
        for part in self.parts.values():
            to_shares(part)
        return [getattr(module, key).detach() for module, key, *_ in self._places]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present parameters in; a fused update an average."""
        self.step += 1
        now = self._tensors()
        for which, averages in zip(self.kept, self._averages, strict=True):
            beta = which if which >= LEAST_DECAY else power_function_beta(which, self.step)
            torch._foreach_lerp_(averages, now, 1 - beta)

    def state(self, which: float) -> PartStates:
        """Return what is averaged, of one width or decay, by part. Raises ConfigError for one not kept."""
        averages = self._of(which)
        state: PartStates = {part: {} for part in self.parts}
        for part, name, number in self._names:
            state[part][name] = averages[number]
        return state

    @torch.no_grad()
    def swap(self, which: float) -> None:
        """Swap parameters and averages of one width or decay; a second call swaps them back, bit for bit."""
        averages = self._of(which)
        for tensor, average in zip(self._tensors(), averages, strict=True):
            held = tensor.clone()
            tensor.copy_(average)
            average.copy_(held)

    @contextmanager
    def swapped(self, which: float) -> Iterator[None]:
        """Swap for what is inside."""
        self.swap(which)
        try:
            yield
        finally:
            self.swap(which)

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors: the update count, and every average by part."""
        return {"step": self.step, "averages": {str(which): self.state(which) for which in self.kept}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Raises ConfigError if it holds other averages.

        One of before running statistics were averaged goes on from those that the parts have now.
        """
        if sorted(state["averages"]) != sorted(map(str, self.kept)):
            raise ConfigError(
                f"the checkpoint holds EMA widths or decays {', '.join(state['averages'])}, but ema.sigma_rel and "
                f"ema.decays ask for {', '.join(map(str, self.kept))}; set them to the checkpoint's"
            )
        self.step = count(state["step"])
        now = self._tensors()
        for which, averages in zip(self.kept, self._averages, strict=True):
            saved = state["averages"][str(which)]
            found = [saved[part].get(name, mine) for (*_, part, name), mine in zip(self._places, now, strict=True)]
            for average, tensor in zip(averages, found, strict=True):  # _foreach_copy_ knows no shares
                if tensor.shape != average.shape:  # which would be spread
                    raise ValueError(f"an average is of {tuple(tensor.shape)}, not {tuple(average.shape)}")
                average.copy_(as_shared(tensor, average))

    def _of(self, which: float) -> list[Tensor]:
        if which not in self.kept:
            raise ConfigError(f"no EMA of width or decay {which} is kept; kept: {', '.join(map(str, self.kept))}")
        return self._averages[self.kept.index(which)]


def check_averages(sigma_rels: Iterable[float], decays: Iterable[float]) -> None:
    """Raise ConfigError unless there are averages of these relative widths, and plain ones of these decays."""
    for sigma_rel in sigma_rels:
        gamma_from_sigma_rel(sigma_rel)
    for decay in decays:
        if not LEAST_DECAY <= decay < 1:
            raise ConfigError(f"EMA decay {decay}; it must lie in [0.5, 1), 0.9999 is usual for generators")
