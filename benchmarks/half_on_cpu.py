"""What we compute in float32 under bf16 on a CPU costs so, and in torch's bf16: forward and backward, by turns.

    python benchmarks/half_on_cpu.py [--threads 1] [--rounds 9]

Depthwise convolutions of 16 images, as EfficientNet-Lite0 has them on 64 pixels and ST-LPIPS's blur on 32; attention of
a small transformer, (images, heads, tokens, width). Printed are each one's median milliseconds under autocast to bf16,
and the ratio, ours to torch's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from aligntok.ops.attention import attention
from aligntok.ops.depthwise import depthwise_conv2d

CONVOLUTIONS = {  # channels, side with its padding, kernel, stride
    "Lite0, 3 x 3, stride 2": (96, 33, 3, 2),
    "Lite0, 5 x 5, stride 2": (144, 19, 5, 2),
    "Lite0, 5 x 5": (672, 8, 5, 1),
    "ST-LPIPS, blur": (64, 30, 3, 2),
}
ATTENTIONS = ((64, 3, 16, 64), (16, 6, 64, 64), (8, 6, 256, 64))
Work = Callable[[], Tensor]


def convolution(channels: int, side: int, kernel: int, stride: int) -> tuple[Work, Work]:
    """Return ours and torch's on 16 random images."""
    x = torch.randn(16, channels, side, side, requires_grad=True)
    weight = torch.randn(channels, 1, kernel, kernel, requires_grad=True)
    return (
        lambda: depthwise_conv2d(x, weight, stride=stride),
        lambda: F.conv2d(x, weight, stride=stride, groups=channels),
    )


def attending(images: int, heads: int, tokens: int, width: int) -> tuple[Work, Work]:
    """Return ours and torch's on random queries, keys and values."""
    q, k, v = (torch.randn(images, tokens, heads, width).transpose(1, 2).requires_grad_() for _ in range(3))
    return lambda: attention(q, k, v, backend="sdpa"), lambda: F.scaled_dot_product_attention(q, k, v)


def milliseconds(work: Work) -> float:
    """Return how long one step takes, forward and backward."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        work().sum().backward()
    return 1e3 * (time.perf_counter() - began)


def medians(ours: Work, torchs: Work, rounds: int) -> tuple[float, float]:
    """Return the medians of both, the first round left out."""
    times = [(milliseconds(ours), milliseconds(torchs)) for _ in range(rounds + 1)][1:]
    own, other = zip(*times, strict=True)
    return statistics.median(own), statistics.median(other)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    works = {name: convolution(*shape) for name, shape in CONVOLUTIONS.items()}
    works |= {f"attention {shape}": attending(*shape) for shape in ATTENTIONS}
    for name, (ours, torchs) in works.items():
        own, other = medians(ours, torchs, asked.rounds)
        print(f"{name:28s} ours {own:7.2f} ms   torch's {other:7.2f} ms   ratio {own / other:.2f}")


if __name__ == "__main__":
    main()
