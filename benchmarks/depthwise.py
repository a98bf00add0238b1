"""What depthwise convolutions cost on a CPU, forward and backward: ours beside torch's, by turns, in one run.

    python benchmarks/depthwise.py [--images 16] [--rounds 5]

Shapes are those of EfficientNet-Lite0 on 64 pixels and of ST-LPIPS's blur on 32. Printed are each one's median
milliseconds under autocast to bf16, and the ratio, ours to torch's; then of what all the rows take together.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from aligntok.ops.depthwise import depthwise_conv2d

SHAPES = {  # channels, side with its padding, kernel, stride
    "Lite0, 3 x 3, stride 2": (96, 33, 3, 2),
    "Lite0, 5 x 5, stride 2": (144, 19, 5, 2),
    "Lite0, 5 x 5": (672, 8, 5, 1),
    "ST-LPIPS, blur": (64, 30, 3, 2),
}


def torchs(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, stride=stride, groups=x.shape[1])


def ours(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return depthwise_conv2d(x, weight, stride=stride)


def milliseconds(convolve: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, weight: Tensor, stride: int) -> float:
    """Return how long one step takes, forward and backward."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        convolve(x, weight, stride).sum().backward()
    return 1e3 * (time.perf_counter() - began)


def measure(images: int, shape: tuple[int, int, int, int], rounds: int) -> tuple[float, float]:
    """Return the medians of ours and torch's."""
    channels, side, kernel, stride = shape
    x = torch.randn(images, channels, side, side, requires_grad=True)
    weight = torch.randn(channels, 1, kernel, kernel, requires_grad=True)
    times: dict[str, list[float]] = {"ours": [], "torch's": []}
    for _ in range(rounds + 1):  # the first warms up
        times["ours"].append(milliseconds(ours, x, weight, stride))
        times["torch's"].append(milliseconds(torchs, x, weight, stride))
    return statistics.median(times["ours"][1:]), statistics.median(times["torch's"][1:])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)
    found = {name: measure(asked.images, shape, asked.rounds) for name, shape in SHAPES.items()}
    found["together"] = (sum(own for own, _ in found.values()), sum(other for _, other in found.values()))
    for name, (own, other) in found.items():
        print(f"{name:24s} ours {own:7.2f} ms   torch's {other:7.2f} ms   ratio {own / other:.2f}")


if __name__ == "__main__":
    main()
