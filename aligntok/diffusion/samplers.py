"""From noise to data along a velocity field: Euler, Heun, adaptive Dormand-Prince, Euler-Maruyama, DDIM.

Each is a function (velocity, noise, times, ...) of the same first three arguments: `velocity(x, t)` with x (N, ...) and
t (N,); `noise` (N, ...), where it starts; `times` (S,), increasing within [0, 1], usually from `time_grid`. It returns
(N, ...) at the last time, in the type of `noise`, and raises ConfigError for times that do not increase in [0, 1] and
for a velocity of another shape than x. Guidance wraps the velocity, and the shift belongs to the times.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from aligntok.diffusion.flow import Velocity, data_from_velocity, noise_from_velocity, score_from_velocity
from aligntok.errors import ConfigError, check_same_shape, unknown
from aligntok.rng import batch_noise, rng

LAST_STEPS = ("mean", "tweedie", "euler")
#: Diffusion coefficient w of the SDE at time t and norm c (Ma et al. 2024, SiT: its choices, on the linear path).
DIFFUSIONS: dict[str, Callable[[float, float], float]] = {
    "constant": lambda t, c: c,
    "sigma": lambda t, c: c * (1 - t),
    "sbdm": lambda t, c: c * (1 - t) / t,
    "decreasing": lambda t, c: 0.25 * (c * math.cos(math.pi * t) + 1) ** 2,
    "increasing_decreasing": lambda t, c: c * math.sin(math.pi * t) ** 2,
}


def euler(velocity: Velocity, noise: Tensor, times: Tensor) -> Tensor:
    """Integrate dx/dt = velocity(x, t) by Euler's rule, of order 1; S - 1 evaluations."""
    x = noise
    for t, t_next in _steps("euler", times):
        x = x + (t_next - t) * _evaluate("euler", velocity, x, _at(t, x))
    return x


def heun(velocity: Velocity, noise: Tensor, times: Tensor) -> Tensor:
    """Integrate dx/dt = velocity(x, t) by Heun's rule, of order 2; 2 (S - 1) evaluations."""
    x = noise
    for t, t_next in _steps("heun", times):
        v = _evaluate("heun", velocity, x, _at(t, x))
        v_next = _evaluate("heun", velocity, x + (t_next - t) * v, _at(t_next, x))
        x = x + (t_next - t) / 2 * (v + v_next)  # the mean slope of both ends (Karras et al. 2022, EDM, Alg. 1)
    return x


def dopri5(velocity: Velocity, noise: Tensor, times: Tensor, *, rtol: float = 1e-3, atol: float = 1e-6) -> Tensor:
    """Integrate dx/dt = velocity(x, t) adaptively by Dormand and Prince's rule, of order 5 (torchdiffeq).

    Only the first and last time count; rtol and atol bound the error of a step, as a root mean square over the whole
    batch: within these bounds a sample depends on its companions. Raises ConfigError for tolerances not above 0.
    """
    if not (rtol > 0 and atol > 0):
        raise ConfigError(f"dopri5: rtol={rtol}, atol={atol}; both must be above 0")
    if noise.device.type == "mps":
        raise ConfigError("dopri5 keeps its time in float64, which mps does not have; take sampler='heun'")
    from torchdiffeq import odeint  # needed here only, and it imports all of scipy's integrators

    steps = _steps("dopri5", times)
    end = steps[-1][1]
    ends = torch.tensor([steps[0][0], end], dtype=torch.float64, device=noise.device)

    def slope(t: Tensor, x: Tensor) -> Tensor:
        within = min(float(t), end)  # the solver's first guess of a step may look past the end
        return _evaluate("dopri5", velocity, x, _at(within, x))

    # step_t: without it the solver steps over the end and interpolates, from times that no model was trained at.
    found = odeint(slope, noise, ends, rtol=rtol, atol=atol, method="dopri5", options=dict(step_t=ends[-1:]))
    return found[-1]


def euler_maruyama(
    velocity: Velocity,
    noise: Tensor,
    times: Tensor,
    *,
    randomness: Randomness | None = None,
    diffusion: str = "sigma",
    diffusion_norm: float = 1.0,
    last_step: str = "mean",
) -> Tensor:
    """Integrate dx = (v + w score) dt + sqrt(2 w) dB, whose marginals are the path's for any w; S - 1 evaluations.

    diffusion, diffusion_norm: w as a function of time, a name from `DIFFUSIONS`. randomness: a generator a sample, or
    numbers (S - 2, N, ...). last_step, which adds no noise: "mean" is the drift of the SDE, "euler" that of the ODE,
    "tweedie" the data expected at t = 1. Raises ConfigError for unknown names, a negative norm, randomness of another
    size, and "sbdm" from t = 0, where its w is infinite.
    """
    steps = _steps("euler_maruyama", times)
    if diffusion not in DIFFUSIONS:
        raise ConfigError(f"euler_maruyama: {unknown('diffusion', diffusion, DIFFUSIONS)}")
    if not (diffusion_norm >= 0 and math.isfinite(diffusion_norm)):
        raise ConfigError(f"euler_maruyama: diffusion_norm={diffusion_norm}; it must be finite, 0 or above")
    if diffusion == "sbdm" and steps[0][0] == 0:
        raise ConfigError(
            "euler_maruyama: diffusion 'sbdm' is infinite at t = 0, where these times start; "
            "take another, or start the grid later: time_grid(..., start=0.001)"
        )
    if last_step not in LAST_STEPS:
        raise ConfigError(f"euler_maruyama: {unknown('last_step', last_step, LAST_STEPS)}")
    if len(steps) > 1:
        randomness = check_randomness("euler_maruyama", randomness, len(steps) - 1, noise)
    x = noise
    for number, (t, t_next) in enumerate(steps):
        at, dt, w = _at(t, x), t_next - t, DIFFUSIONS[diffusion](t, diffusion_norm)
        v = _evaluate("euler_maruyama", velocity, x, at)
        drift = v + w * score_from_velocity(x, v, at)  # v + w s (SiT, the SDE of the same marginals)
        if number == len(steps) - 1:
            break
        assert randomness is not None
        x = x + dt * drift + math.sqrt(2 * w * dt) * step_noise(randomness, number, x)
    if last_step == "tweedie":
        return data_from_velocity(x, v, at)  # E[x_1 | x_t] (Efron 2011, Tweedie's formula)
    return x + dt * (drift if last_step == "mean" else v)


def ddim(
    velocity: Velocity,
    start: Tensor,
    times: Tensor,
    /,
    *,
    eta: float = 0.0,
    noise: str = "posterior",
    randomness: Randomness | None = None,
) -> Tensor:
    """Predict data and noise, and mix them for the next time (Song et al. 2020, DDIM); S - 1 evaluations.

    eta: the share of fresh noise, from 0 (none: then the steps are Euler's) to 1: with `noise` "posterior" the
    posterior's own, as DDPM's; with "flow" minFM's, a fifth of that in the first of 50 steps. randomness, needed when
    eta is not 0: a generator a sample, or numbers (S - 1, N, ...). Raises ConfigError for another eta or noise, or
    randomness of another size.
    """
    steps = _steps("ddim", times)
    if not 0 <= eta <= 1:
        raise ConfigError(f"ddim: eta={eta}; it must lie in [0, 1], 0 for no noise")
    if noise not in NOISES:
        raise ConfigError(f"ddim: {unknown('noise', noise, NOISES)}")
    if eta:
        randomness = check_randomness("ddim", randomness, len(steps), start)
    x = start
    for number, (t, t_next) in enumerate(steps):
        at = _at(t, x)
        v = _evaluate("ddim", velocity, x, at)
        data, old_noise = data_from_velocity(x, v, at), noise_from_velocity(x, v, at)
        kept, spread = NOISES[noise](t, t_next, eta)
        # x_s = s x_1 + sqrt((1 - s)^2 - sigma^2) x_0 + sigma z (DDIM, Eq. 12, with alpha = s and noise level 1 - s)
        x = t_next * data + kept * old_noise
        if eta:
            assert randomness is not None
            x = x + spread * step_noise(randomness, number, x)
    return x


def _posterior_noise(t: float, t_next: float, eta: float) -> tuple[float, float]:
    """Return how much of the old noise stays, and how much comes anew, in a step of :func:`ddim`."""
    sigma, sigma_next = 1 - t, 1 - t_next
    # s_next^2 / s^2 (s^2 - (a / a_next)^2 s_next^2) (Kingma et al. 2021, VDM, App. A), with a = t and s = 1 - t
    deviation = sigma_next / sigma * math.sqrt(max(sigma**2 - (t / t_next * sigma_next) ** 2, 0))
    spread = eta * deviation  # of the posterior: of x at t_next, given x at t and the data
    return math.sqrt(max(sigma_next**2 - spread**2, 0)), spread


def _flow_noise(t: float, t_next: float, eta: float) -> tuple[float, float]:
    """The same, as minFM's sampler has it: eta of the old noise goes at the rate of the step, and comes anew."""
    sigma, sigma_next = 1 - t, 1 - t_next
    kept = sigma_next * (1 - eta * (1 - sigma_next / sigma))
    return kept, math.sqrt(max(sigma_next**2 - kept**2, 0))


NOISES: dict[str, Callable[[float, float, float], tuple[float, float]]]
NOISES = {"posterior": _posterior_noise, "flow": _flow_noise}
SAMPLERS: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (euler, heun, dopri5, euler_maruyama, ddim)}


def options_of(sampler: str, given: Iterable[str] = (), who: str = "sampling", without: str = "") -> list[str]:
    """Return the keywords of the sampler of that name, but one that nobody gives by hand.

    Raises ConfigError, `who` at its beginning, for a name, or one of the options `given`, that it does not know.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"{who}: {unknown('sampler', sampler, SAMPLERS)}")
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != without]
    for name in sorted(set(given) - set(known)):
        raise ConfigError(f"{who}: sampler '{sampler}' has {unknown('option', name, known)}")
    return known


@torch.no_grad()
def sample(velocity: Velocity, noise: Tensor, times: Tensor, /, sampler: str = "euler", **options: Any) -> Tensor:
    """Integrate from `noise` (N, ...) over `times` (S,) with the sampler of that name, without gradients.

    options: keywords of that sampler. Raises ConfigError for a name or an option it does not know.
    """
    options_of(sampler, options, "sample")
    return SAMPLERS[sampler](velocity, noise, times, **options)


def _steps(who: str, times: Tensor) -> list[tuple[float, float]]:
    """Pair each time with the next, as plain numbers, so that no step waits for a device."""
    if times.ndim != 1 or len(times) < 2:
        raise ConfigError(f"{who}: times {tuple(times.shape)}; give (S,) of at least two times, as time_grid does")
    known: list[float] = times.tolist()
    steps = list(pairwise(known))
    if not (known[0] >= 0 and known[-1] <= 1 and all(t < t_next for t, t_next in steps)):
        raise ConfigError(f"{who}: times from {known[0]:g} to {known[-1]:g}; they must increase within [0, 1]")
    return steps


def _at(t: float, x: Tensor) -> Tensor:
    """Return one time for all samples of x, (N,): float32, or float64 as x is."""
    return torch.full((len(x),), t, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def _evaluate(who: str, velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
    v = velocity(x, times)
    check_same_shape(who, velocity=v, x=x)
    return v.to(x.dtype)


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
