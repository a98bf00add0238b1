"""Guidance: turns a call `model(x, t, y)` into a velocity(x, t) that leans away from a weaker prediction.

A pass is paid for only where it counts: outside the interval, or with scale 1, the weaker prediction is not made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from aligntok.diffusion.flow import Velocity
from aligntok.errors import ConfigError

#: What a model is conditioned on: labels (N,), text states (N, L, D), or several such tensors by name.
Given = Tensor | Mapping[str, Tensor]
#: model(x, t, y) -> velocity: x (N, C, ...), t (N,), y of N rows.
Model = Callable[[Tensor, Tensor, Given], Tensor]
Rows = slice | Tensor
ROUNDED = 1e-6  # by how much a time in float32 may miss the end of an interval that it was to be
Pair = Callable[[Tensor, Tensor, Rows], tuple[Tensor, Tensor]]


def classifier_free(
    model: Model,
    y: Given,
    null: Given | int | None = None,
    scale: float = 1.0,
    *,
    interval: tuple[float, float] | None = None,
    channels: int | None = None,
    preserve_energy: bool = False,
) -> Velocity:
    """Return the velocity of `model` for condition `y`, led away from what it predicts for the null condition.

    null: the null label, or a condition of y's shape (one row serves all). scale: 1 is no guidance, and then only the
    conditional pass is run; 0 is unconditional, and where nothing else is asked for only the null pass is. interval:
    the (lo, hi), both included, of t where there is guidance; None is everywhere. channels: only the first so many are
    guided. preserve_energy: EP-CFG. Where there is guidance, both passes are one batch of 2N, the conditional half
    first. Raises ConfigError for a scale other than 1 without `null`, an interval
    out of order or outside [0, 1], a negative scale, and channels that x does not have.
    """
    _check_options("classifier_free", scale, interval, channels)
    if scale == 1:
        return lambda x, t: model(x, t, y)
    if null is None:
        raise ConfigError(f"classifier_free: scale={scale} needs the null label (null=...); scale=1 does without")
    blank = _null_condition(y, null)
    if scale == 0 and interval is None and channels is None and not preserve_energy:  # y has no say anywhere
        return lambda x, t: model(x, t, blank)

    def pair(x: Tensor, t: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        both = _each(lambda own, none: torch.cat([own, none[rows]]), y, blank)
        predicted = model(torch.cat([x, x[rows]]), torch.cat([t, t[rows]]), both)
        return predicted[: len(x)], predicted[len(x) :]

    return _led(lambda x, t: model(x, t, y), pair, scale, interval, channels, preserve_energy)


def autoguidance(
    model: Model,
    weak_model: Model,
    y: Given,
    scale: float = 1.0,
    *,
    interval: tuple[float, float] | None = None,
    channels: int | None = None,
    preserve_energy: bool = False,
) -> Velocity:
    """Return the velocity of `model`, led away from that of `weak_model`, a lesser model of the same condition.

    After Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself". Options, and the ConfigErrors
    they raise, are those of `classifier_free`; `weak_model` runs only where there is guidance.
    """
    _check_options("autoguidance", scale, interval, channels)
    if scale == 1:
        return lambda x, t: model(x, t, y)

    def pair(x: Tensor, t: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        return model(x, t, y), weak_model(x[rows], t[rows], rows_of(y, rows))

    return _led(lambda x, t: model(x, t, y), pair, scale, interval, channels, preserve_energy)


def guide(
    strong: Tensor, weak: Tensor, scale: float, channels: int | None = None, preserve_energy: bool = False
) -> Tensor:
    """Lead `strong` away from `weak`, both (N, C, ...): all channels, or the first `channels` and the others strong.

    preserve_energy: rescales the guided channels to the energy of the strong ones. Raises ConfigError when there are
    fewer than `channels`.
    """
    _check_channels(strong, channels)
    led, base = strong[:, :channels], weak[:, :channels]
    guided = base + scale * (led - base)  # v_u + s (v_c - v_u) (Ho & Salimans 2022, Eq. 6, as extrapolation from v_u)
    if preserve_energy:
        guided = rescale_energy(guided, led)
    return guided if channels is None else torch.cat([guided, strong[:, channels:]], dim=1)


def rescale_energy(guided: Tensor, reference: Tensor) -> Tensor:
    """Scale each sample of `guided` (N, ...) to the energy, the sum of squares, of `reference` (N, ...).

    The direction stays; zeros stay zeros. Sums are float32 at least.
    """
    wide = torch.promote_types(guided.dtype, torch.float32)
    energies = [x.to(wide).flatten(1).square().sum(dim=1) for x in (reference, guided)]
    ratio = (energies[0] / energies[1]).sqrt()  # sqrt(E_c / E_cfg) (Zhang et al. 2024, EP-CFG)
    ratio = ratio.where(energies[1] > 0, 0)
    return (guided * ratio.reshape(-1, *[1] * (guided.ndim - 1))).to(guided.dtype)


def _led(
    alone: Velocity,
    pair: Pair,
    scale: float,
    interval: tuple[float, float] | None,
    channels: int | None,
    preserve_energy: bool,
) -> Velocity:
    """Return a velocity that is `alone`, or, in the rows whose t lies in the interval, guided by `pair`."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        _check_channels(x, channels)
        rows = _rows_inside(t, interval)
        if rows is None:
            return alone(x, t)
        strong, weak = (v.to(x.dtype) for v in pair(x, t, rows))  # a large scale magnifies the rounding of half types
        guided = guide(strong[rows], weak, scale, channels, preserve_energy)
        return guided if isinstance(rows, slice) else strong.index_copy(0, rows, guided)

    return velocity


def _rows_inside(t: Tensor, interval: tuple[float, float] | None) -> Rows | None:
    """Return which of t (N,) lie in the interval: all (a slice), none (None), or their numbers."""
    if interval is None:
        return slice(None)
    # Kynkaanniemi et al. 2024: guidance in a limited interval, ends included; times of diffusers are 1 - t, rounded.
    inside = (t >= interval[0] - ROUNDED) & (t <= interval[1] + ROUNDED)
    numbers = inside.nonzero().flatten()
    if len(numbers) == len(t):
        return slice(None)
    return numbers if len(numbers) else None


def _check_options(who: str, scale: float, interval: tuple[float, float] | None, channels: int | None) -> None:
    if not (scale >= 0 and math.isfinite(scale)):
        raise ConfigError(f"{who}: scale={scale}; it must be finite and not negative, 1 for no guidance")
    if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
        raise ConfigError(f"{who}: interval={tuple(interval)}; it is (lo, hi) with 0 <= lo <= hi <= 1 (t = 0 is noise)")
    if channels is not None and channels < 1:
        raise ConfigError(f"{who}: channels={channels}; give 1 or more, or None for all")


def _check_channels(x: Tensor, channels: int | None) -> None:
    if channels is not None and channels > x.shape[1]:
        raise ConfigError(
            f"guidance on channels={channels}, but x has {x.shape[1]}; give at most that, or None for all"
        )


def _null_condition(y: Given, null: Given | int) -> Given:
    if isinstance(null, int):
        if isinstance(y, Mapping) or y.is_floating_point():
            raise ConfigError(f"classifier_free: null={null} is a label, y is {_told(y)}; give a null condition like y")
        return torch.full_like(y, null)
    if _by_name(y).keys() != _by_name(null).keys():
        raise ConfigError(f"classifier_free: y is {_told(y)}, null is {_told(null)}; give null the tensors of y")
    return _each(_as_rows, y, null)


def _as_rows(own: Tensor, none: Tensor) -> Tensor:
    if none.shape not in (own.shape, (1, *own.shape[1:])):
        raise ConfigError(
            f"classifier_free: y is {tuple(own.shape)}, null is {tuple(none.shape)}; "
            f"give null y's shape, or one row of it, {(1, *own.shape[1:])}"
        )
    return none.to(own).expand_as(own)


def _each(function: Callable[..., Tensor], *conditions: Given) -> Given:
    """Apply `function` to the conditions' tensors, name by name where they have names."""
    named = [_by_name(c) for c in conditions]
    made = {name: function(*(c[name] for c in named)) for name in named[0]}
    return made if isinstance(conditions[0], Mapping) else made[""]


def rows_of(condition: Given, rows: Rows) -> Given:
    """Return some rows of a condition."""
    return _each(lambda own: own[rows], condition)


def _by_name(condition: Given) -> Mapping[str, Tensor]:
    """Return a condition's tensors by name; a single tensor's name is empty."""
    return condition if isinstance(condition, Mapping) else {"": condition}


def _told(condition: Given) -> str:
    return ", ".join(f"{name} {tuple(x.shape)}".strip() for name, x in sorted(_by_name(condition).items()))
