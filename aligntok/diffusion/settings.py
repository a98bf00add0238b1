"""How a generator is trained by flow matching, and how samples are drawn: times, loss; sampler, steps, guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from aligntok.settings import AboveZero, NotNegative, Positive, settings

Shift = Annotated[float, Field(ge=1e-3, le=1000)] | Literal["length"]


@settings
class TransportSettings:
    """From noise to data: training times and loss."""

    times: Literal["logit_normal", "uniform"] = "logit_normal"
    """How training times are drawn."""
    mean: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """Mean of the logit."""
    scale: AboveZero = 1.0
    """Standard deviation of the logit."""
    shift: Shift = 1.0
    """Shift of the times, below 1 towards noise; 1 for none; "length": the more tokens the latents have, the lower."""
    direction_weight: NotNegative = 1.0
    """Weight of the velocity's direction (cosine) loss beside its squared error; 0 leaves it out."""


@settings
class Sampling:
    """Settings of a sampler and its guidance; the defaults are the paper's without guidance: Euler, 30 steps."""

    steps: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Of the solver, on a grid of one time more (published LightningDiT code counts the times)."""
    sampler: str = "euler"
    """euler, heun, dopri5, euler_maruyama or ddim."""
    shift: Shift = 1.0
    """Of the time grid, below 1 towards noise; "length": the more tokens a sample's latents have, the lower."""
    cfg_scale: Annotated[float, Field(ge=0, le=10_000)] = 1.0
    """Of guidance; 1 is none, and 0 unconditional: the null class, or the empty prompt, in every place."""
    cfg_interval: tuple[float, float] | None = None
    """Of t where there is guidance, t = 0 being noise; None: everywhere."""
    cfg_channels: Positive | None = None
    """Guide the first so many latent channels only; None: all."""
    preserve_energy: bool = False
    """Keep the energy of the unguided velocity (EP-CFG)."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The sampler's own, such as eta=0.5 of ddim."""

    def __post_init__(self) -> None:
        from aligntok.diffusion.sampling import check_sampling  # torch, which a command's help does without

        check_sampling(self)


def changed(own: Sampling, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a Sampling that differs from another: another sampler begins with its own options, and of
    the same one those stay that are not changed.
    """
    kept = own.options if changes.get("sampler", own.sampler) == own.sampler else {}
    options = changes.get("options", {})
    whole = {**kept, **options} if isinstance(options, Mapping) else options
    return {**dataclasses.asdict(own), **changes, "options": whole}
