"""What a training step of FLUX's transformer costs, beside diffusers' class of equal weights, and what padding costs.

    python benchmarks/text_to_image_step.py --threads 2
    python benchmarks/text_to_image_step.py --dtype bfloat16 --width 2048 --depth 7 14 --batch-size 32   # on a GPU

A step is forward and backward of a squared error, on latents of 32 channels and text of --text tokens. Ours and
diffusers' have the same weights, inputs and dtype, and attend to all text, as diffusers' does; printed is how far
their velocities are apart. Ours is then given prompts of different lengths, padded to as many tokens and masked; and
attention alone, with and without such a mask.

In each round everything takes its turn, so that a noisy machine disturbs all alike; printed are medians and quartiles,
and for ratios those of the ratios within a round. With one thread the seconds are the processor's own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aligntok.device import device
from aligntok.evaluation.cost.measure import now, spread
from aligntok.generators.flux_dit import FluxDiT
from aligntok.imports import quietly
from aligntok.ops.attention import kernels_taken
from aligntok.ops.packed import attention_without, present
from aligntok.weights.flux import with_diffusers_names

CHANNELS, TEXT_WIDTH, POOLED_WIDTH, HEAD = 32, 768, 768, 64
OURS, DIFFUSERS, PADDED = "flux_dit", "diffusers' class", "flux_dit, padded text"
ATTENTION, MASKED = "attention of all", "attention without padding"
#: Which is held against which, and the most that it may take.
GOALS = ((OURS, DIFFUSERS, 1.0), (PADDED, OURS, 1.1), (MASKED, ATTENTION, 1.1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help=f"of the model, in heads of {HEAD}")
    parser.add_argument("--depth", type=int, nargs=2, default=(2, 4), metavar=("DOUBLE", "SINGLE"))
    parser.add_argument("--latent-size", type=int, default=16, help="height and width of the latents")
    parser.add_argument("--text", type=int, default=64, help="tokens of a prompt, padding included")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=11, help="at least 2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def build(given: argparse.Namespace) -> tuple[FluxDiT, nn.Module]:
    """Return our model and diffusers' of the same random weights."""
    with quietly():
        from diffusers import FluxTransformer2DModel
    (double, single), heads, dtype = given.depth, given.width // HEAD, getattr(torch, given.dtype)
    ours = FluxDiT(
        in_channels=CHANNELS,
        context_in_dim=TEXT_WIDTH,
        vec_in_dim=POOLED_WIDTH,
        hidden_size=given.width,
        num_heads=heads,
        depth=double,
        depth_single_blocks=single,
    )
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)  # as initialised, most gradients would be 0
    theirs = FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=HEAD,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        axes_dims_rope=ours.axes_dim,
    )
    theirs.load_state_dict(with_diffusers_names(ours.state_dict(), given.width))
    return ours.to(device(), dtype), nn.Module.to(theirs, device(), dtype)  # its own warns of the dtype


def drawn(given: argparse.Namespace) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return latents, times and a prompt's tensors."""
    n, side = given.batch_size, given.latent_size
    how: dict[str, Any] = dict(device=device(), dtype=getattr(torch, given.dtype))
    y = dict(text=torch.randn(n, given.text, TEXT_WIDTH, **how), pooled=torch.randn(n, POOLED_WIDTH, **how))
    return torch.randn(n, CHANNELS, side, side, **how), torch.rand(n, **how), y


def mask(given: argparse.Namespace) -> Tensor:
    """Return which tokens are there of prompts of one token to all, evenly."""
    lengths = torch.linspace(1, given.text, given.batch_size).long()
    return (torch.arange(given.text) < lengths[:, None]).to(device())


def as_diffusers(model: nn.Module, x: Tensor, t: Tensor, y: dict[str, Tensor]) -> Tensor:
    """Return the velocity to data, (N, C, h, w), as ours, of diffusers' class."""
    height, width = x.shape[-2:]
    places = torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width)).to(x)
    found = model(
        hidden_states=x.flatten(2).mT,
        encoder_hidden_states=y["text"],
        pooled_projections=y["pooled"],
        timestep=1 - t,
        img_ids=places,
        txt_ids=places.new_zeros(y["text"].shape[1], 3),
        return_dict=False,
    )[0]
    return -found.mT.unflatten(2, (height, width))


def step(model: nn.Module, velocity: Callable[[], Tensor], target: Tensor) -> None:
    (velocity() - target).square().mean().backward()
    for parameter in model.parameters():
        parameter.grad = None


def attend(given: argparse.Namespace, masked: bool) -> Callable[[], Any]:
    """Return a pass of attention forward and backward, of text and image."""
    tokens = given.text + given.latent_size**2
    size = (given.batch_size, tokens, given.width // HEAD, HEAD)
    how: dict[str, Any] = dict(device=device(), dtype=getattr(torch, given.dtype))
    qkv = [torch.randn(size, requires_grad=True, **how).transpose(1, 2) for _ in range(3)]
    along = torch.randn(size, **how).transpose(1, 2)
    all_there = torch.ones(given.batch_size, tokens - given.text, dtype=torch.bool, device=device())
    there = present(torch.cat([mask(given), all_there], dim=1), device()) if masked else None
    return lambda: torch.autograd.grad(attention_without(*qkv, there, who="generator"), qkv, along)


def seconds(call: Callable[[], Any]) -> float:
    """Return what a call takes."""
    began = now()
    call()
    return now() - began


def main() -> None:
    given = parse_arguments()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    ours, theirs = build(given)
    x, t, y = drawn(given)
    target, padded = torch.randn_like(x), {**y, "mask": mask(given)}
    millions = sum(p.numel() for p in ours.parameters()) / 1e6
    where = torch.cuda.get_device_name() if device().type == "cuda" else f"{given.threads} CPU threads"
    print(
        f"{where}, {given.dtype}, torch {torch.__version__}; {millions:.1f} million parameters, {given.latent_size**2} "
        f"tokens of image and {given.text} of text, batch {given.batch_size}; {given.rounds} rounds",
        flush=True,
    )
    with torch.no_grad():
        apart = (ours(x, t, y) - as_diffusers(theirs, x, t, y)).abs().max().item()
    print(f"velocities of the two are apart by at most {apart:.1e}")
    calls = {
        OURS: lambda: step(ours, lambda: ours(x, t, y), target),
        DIFFUSERS: lambda: step(theirs, lambda: as_diffusers(theirs, x, t, y), target),
        PADDED: lambda: step(ours, lambda: ours(x, t, padded), target),
        ATTENTION: attend(given, masked=False),
        MASKED: attend(given, masked=True),
    }
    laps: dict[str, list[float]] = {name: [] for name in calls}
    kernels_taken()
    for number in range(given.rounds + 1):  # the first warms up
        for name in [*calls] if number % 2 else [*calls][::-1]:
            took = seconds(calls[name])
            laps[name] += [took] * bool(number)
    print(kernels_taken())
    for name, taken in laps.items():
        print(f"  {name:28s} {spread(taken, 4)} s")
    for name, other, most in GOALS:
        ratios = [a / b for a, b in zip(laps[name], laps[other], strict=True)]
        met = "met" if statistics.median(ratios) <= most else "not met"
        print(f"  {f'{name} / {other}':42s} {spread(ratios, 4)}, goal at most {most:.2f}: {met}")


if __name__ == "__main__":
    main()
