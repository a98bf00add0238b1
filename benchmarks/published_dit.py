"""The published LightningDiT from a clone: its model, its guidance, its loop over weights; and a step, of ours too.

For `generator_step.py` and `device.py`, which run it beside ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from aligntok.device import computing
from aligntok.diffusion.flow import flow_matching_loss, interpolate, path_velocity
from aligntok.diffusion.samplers import sample
from aligntok.diffusion.times import sample_times, time_grid
from aligntok.generators.lightning_dit import SIZES

CHANNELS, CLASSES, SCALE, DECAY = 32, 1000, 4.0, 0.9999
GUIDED_3, IN_INTERVAL = "guided, first 3 channels", "guided for t in 0.125 to 1, shift 0.3"
START, SHIFT = 0.125, 0.3  # of that interval and of its grid, as the published settings for samples have them

Sampling = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Side:
    """One implementation: a model, how its weights are stepped and averaged, and its samplings by name."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Callable[[], None]
    samplings: dict[str, Sampling]  # (noise, labels) -> samples
    batches: list[int] = field(default_factory=list)  # rows of each call of the model

    def __post_init__(self) -> None:
        # Not of the model: the published guidance calls its forward() past the hooks.
        self.model.x_embedder.register_forward_pre_hook(lambda _, inputs: self.batches.append(len(inputs[0])))


def import_published(reference: Path, compiled: bool = False) -> Any:
    """Return the published model's module from a clone; ends the program where it cannot be imported."""
    sys.path.insert(0, str(reference))
    # It compiles its functions as it is imported: another time to have them otherwise.
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]
    try:
        with nullcontext() if compiled else mock.patch.object(torch, "compile", lambda function: function):
            return import_module("models.lightningdit")
    except ImportError as error:
        sys.exit(
            f"--reference {reference}: {error}; give a folder with a clone of the published LightningDiT, and install "
            "what its model imports (timm, einops, fairscale)"
        )


def build_published(given: argparse.Namespace, ours: nn.Module, where: torch.device | str = "cpu") -> Side:
    """Return the published model, with our weights and in our mode, and what its training script does with it."""
    module = import_published(given.reference, given.compile)
    width, depth, heads = SIZES[given.size]
    shape = dict(hidden_size=width, depth=depth, num_heads=heads) | depth_of(given)
    options = dict(use_swiglu=True, use_rope=True, use_rmsnorm=True, use_checkpoint=given.grad_checkpointing)
    model = module.LightningDiT(given.latent_size, 1, CHANNELS, num_classes=CLASSES, **shape, **options)
    model.load_state_dict(ours.state_dict(), strict=False)  # the position tables are its own
    model.to(where).train(ours.training)
    averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def average() -> None:
        for name, parameter in model.named_parameters():
            averages[name].mul_(DECAY).add_(parameter, alpha=1 - DECAY)

    def sampling(shift: float = 1.0, *interval: Any) -> Sampling:
        def guided(noise: Tensor, y: Tensor) -> Tensor:
            both = torch.cat([y, torch.full_like(y, CLASSES)])
            grid = time_grid(given.points, shift)
            doubled = noise.repeat(2, 1, 1, 1)
            return sample(lambda x, t: model.forward_with_cfg(x, t, both, SCALE, *interval), doubled, grid)[: len(y)]

        return guided

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0)
    samplings = {GUIDED_3: sampling(), IN_INTERVAL: sampling(SHIFT, True, START)}
    return Side(model, optimizer, average, samplings)


def take_step(
    side: Side,
    data: Tensor,
    labels: Tensor,
    precision: str = "fp32",
    lap: Callable[[str], None] = lambda part: None,
) -> None:
    """Take one training step on latents (N, C, h, w) and labels (N,); `lap` hears of each part that is done."""
    noise, t = torch.randn_like(data), sample_times(torch.rand(len(data), device=data.device))
    x = interpolate(noise, data, t)
    lap("noisy latents")
    with computing(precision, data.device):
        predicted = side.model(x, t, labels).float()
    lap("forward")
    loss = flow_matching_loss(predicted, path_velocity(noise, data)).mean()
    lap("loss")
    loss.backward()
    lap("backward")
    side.optimizer.step()
    side.optimizer.zero_grad()
    lap("optimiser")
    side.average()
    lap("moving average")


def depth_of(given: argparse.Namespace) -> dict[str, int]:
    """Return the keyword of the blocks, if so many are asked for."""
    return {"depth": given.depth} if given.depth else {}
