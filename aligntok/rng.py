"""Random numbers: which stream a purpose draws from, and how the stream follows from a seed and numbers.

Streams of one seed that begin alike are told apart by what is drawn from them, or by their first word. The table is a
promise: with another formula, a run that was begun would not go on as the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

NumpyStream: TypeAlias = Literal[
    "order", "sample", "buckets", "posterior", "label", "dropout", "caption", "prompt", "blocks", "window", "instead"
]
TorchStream: TypeAlias = Literal["noise", "step", "layers", "weights", "probe", "points", "subsets", "shuffle"]

SEEDS = 2**32  # torch's generator on the CPU takes a seed's lowest 32 bits, and leaves the others out

#: The entropy of NumPy's default generator.
NUMPY: dict[str, Callable[..., int | tuple[int, ...]]] = {
    "order": lambda seed, epoch, bucket: (0, seed, epoch, bucket),  # of the images of a bucket in an epoch
    "sample": lambda seed, number: (1, seed, number),  # a sample's crop and flip
    "buckets": lambda seed, epoch: (2, seed, epoch),  # their order in an epoch
    "posterior": lambda seed, number, copy: (seed, number, copy),  # an image's draw; copy 1 is mirrored
    "dropout": lambda seed, number: (3, seed, number),  # in layers, of a sample of a training
    "prompt": lambda seed, place, image: (5, seed, place, image),  # the seed of an image of a prompt
    "caption": lambda seed, block: (4, seed, block),  # which of its own a sample takes, 4,096 samples at once
    "blocks": lambda seed, epoch: (6, seed, epoch),  # of a stream: the keys of their order in an epoch
    "window": lambda seed, epoch, bucket, window: (7, seed, epoch, bucket, window),  # its samples' order
    "instead": lambda seed, number, again: (8, seed, number, again),  # what a stream takes for a broken sample
    "label": lambda seed: seed,  # of a sample to be drawn
}
#: The seed of torch's generator.
TORCH: dict[str, Callable[..., int]] = {
    "noise": lambda seed: seed,  # of a sample to be drawn, its sampler's included
    "step": lambda seed, step: seed * 1_000_003 + step,  # times, drops and noise of a step's global batch
    "layers": lambda seed, step: (seed * 1_000_003 + step) * 4_096,  # what they draw themselves in a step of one batch
    "weights": lambda seed: seed,  # a model's first ones
    "probe": lambda seed: seed,  # the order of a linear probe's images, over all epochs
    "points": lambda seed: seed,  # the latents in a t-SNE
    "subsets": lambda seed: seed,  # of a kernel distance
    "shuffle": lambda seed: seed,  # of an Inception Score's images
}


@overload
def rng(stream: NumpyStream, seed: int, *numbers: int) -> np.random.Generator: ...
@overload
def rng(stream: TorchStream, seed: int, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator: ...
def rng(
    stream: str, seed: int, *numbers: int, device: torch.device | str = "cpu"
) -> np.random.Generator | torch.Generator:
    """Return a generator of a stream's numbers, new each time: NumPy's, or torch's on a device, as the table has it."""
    if stream in NUMPY:
        return np.random.default_rng(NUMPY[stream](seed, *numbers))
    return torch.Generator(device).manual_seed(TORCH[stream](seed, *numbers))


def seed_torch(stream: TorchStream, seed: int, *numbers: int) -> None:
    """Begin a stream in torch's own generators, on every device: for layers, which draw from nothing else."""
    torch.manual_seed(TORCH[stream](seed, *numbers))


def torch_state(device: torch.device) -> list[bytes]:
    """Return where torch's own generators are, of the CPU and of a device: elsewhere once a layer has drawn."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return [state.numpy().tobytes() for state in states]


def batch_noise(generators: Iterable[np.random.Generator | torch.Generator], shape: Sequence[int]) -> Tensor:
    """Draw standard normal numbers, `shape` (C, h, w) from each generator: float32 (N, C, h, w) on their device."""
    return torch.stack([_normal(each, tuple(shape)) for each in generators])


def _normal(generator: np.random.Generator | torch.Generator, shape: tuple[int, ...]) -> Tensor:
    if isinstance(generator, torch.Generator):
        return torch.randn(shape, generator=generator, device=generator.device)
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
