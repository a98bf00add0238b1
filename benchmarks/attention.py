"""What attention takes by each kernel, forward and backward, at the shapes of the models here; theirs is marked.

    python benchmarks/attention.py
    python benchmarks/attention.py --shapes 17x2x8 --packed 5 1 9 --images 2 --rounds 3   # where there is no GPU

A line a kernel: medians of --rounds in ms, in which the kernels take turns, and how far the result is from plain
float32 softmax; or why it cannot run. `*` marks what `ops.attention` and `ops.packed` take, which also say why. Each
shape, and the packed sequences, have --limit seconds for themselves: half of them for first passes, compilation
included, one kernel after another; rounds end when they are over.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from aligntok.device import device
from aligntok.errors import first_line
from aligntok.evaluation.cost.measure import synchronise
from aligntok.ops.attention import attention, kernels_taken
from aligntok.ops.packed import BACKENDS, packed_attention

#: Tokens, heads and their width: encoders of 256 pixels, LightningDiT-XL, and an encoder of 512 pixels.
SHAPES = ("257x16x64", "256x16x72", "1024x16x64")
#: Tokens of packed sequences, such as captions and images of several sizes.
LENGTHS = (333, 77, 1024, 256, 581, 64, 900, 128)
TORCHS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
Kernel = Callable[..., Tensor]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=SHAPES, metavar="TOKENSxHEADSxWIDTH")
    parser.add_argument("--packed", nargs="*", type=int, default=LENGTHS, metavar="TOKENS", help="of each sequence")
    parser.add_argument("--packed-heads", default="16x72", metavar="HEADSxWIDTH")
    parser.add_argument("--images", type=int, default=32, help="in a batch that is not packed")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="bfloat16 on a GPU, else float32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of a shape")
    return parser.parse_args()


@contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside after so many seconds."""

    def end(*_: Any) -> None:
        raise TimeoutError(f"its first pass took longer than {seconds:.3g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    synchronise()
    began = time.perf_counter()
    found = call()
    synchronise()
    return time.perf_counter() - began, found


def passes(kernel: Kernel, qkv: Sequence[Tensor], along: Tensor) -> tuple[float, float, Tensor]:
    """Go forward and backward; return the seconds of each, and the result."""
    forward, result = timed(lambda: kernel(*qkv))
    backward, _ = timed(lambda: torch.autograd.grad(result, qkv, along))
    return forward, backward, result.detach()


def first_pass(kernel: Kernel, qkv: Sequence[Tensor], seconds: float) -> Tensor | str:
    """Return what a kernel computes, or why it cannot: what torch warns of, or the error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with ending_after(seconds):
                return passes(kernel, qkv, torch.ones_like(qkv[0]))[2]
        except Exception as error:  # whatever a kernel or its compiler has to say
            about = [first_line(each.message) for each in said]
            reasons = [each for each in about if "not used because" not in each and "runtime disabled" not in each]
            return (" ".join(reasons) or first_line(error))[:200]


def measure(
    kernels: dict[str, Kernel], taken: str, qkv: Sequence[Tensor], expected: Tensor, given: argparse.Namespace
) -> None:
    """Print a line a kernel, with a star at the one that is `taken`."""
    began, tried = time.monotonic(), dict[str, Tensor | str]()
    for name, kernel in kernels.items():
        tried[name] = first_pass(kernel, qkv, max(0.5, began + given.limit / 2 - time.monotonic()))
    running = {name: kernels[name] for name, found in tried.items() if isinstance(found, Tensor)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
    along = torch.randn_like(qkv[0])
    for number in range(given.rounds):
        names = [*running] if number % 2 else [*running][::-1]
        for name in names:
            times[name].append(passes(running[name], qkv, along)[:2])
        if time.monotonic() - began > given.limit:
            break
    for name, found in tried.items():
        star = "*" if name == taken else " "
        if isinstance(found, str):
            print(f"{star} {name:<25} cannot run: {found}", flush=True)
            continue
        forward, backward = (1000 * statistics.median(each) for each in zip(*times[name], strict=True))
        off = (found.float() - expected).abs().max().item()
        rounds = len(times[name])
        print(f"{star} {name:<25} {forward:9.3f} ms {backward:9.3f} ms backward  off by {off:.1e}, {rounds} rounds")


def plain(shape: str, dtype: torch.dtype, given: argparse.Namespace) -> None:
    """Measure a batch of images, each of as many tokens."""
    tokens, heads, width = map(int, shape.split("x"))
    size = (given.images, heads, tokens, width)
    qkv = [torch.randn(size, device=device(), dtype=dtype, requires_grad=True) for _ in range(3)]

    def torchs(backend: SDPBackend, *qkv: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*qkv)

    flex: Any = torch.compile(flex_attention) if device().type == "cuda" else flex_attention
    kernels: dict[str, Kernel] = {"xformers": partial(attention, backend="xformers")}
    kernels |= {name: partial(torchs, backend) for name, backend in TORCHS.items()} | {"FlexAttention": flex}
    kernels_taken()
    with ending_after(given.limit / 2):
        attention(*qkv, who="taken")
    said = kernels_taken()
    choice = SDPBackend(torch._fused_sdp_choice(*qkv))
    names = {backend: name for name, backend in TORCHS.items()}
    own = "xformers" if said.startswith("taken: xformers") else names.get(choice, "")
    q, k, v = (x.detach().float() for x in qkv)
    expected = (q @ k.mT / width**0.5).softmax(-1) @ v
    print(f"\n{given.images} images, {tokens} tokens x {heads} heads x {width}, {dtype}", flush=True)
    measure(kernels, own, qkv, expected, given)
    print(f"  {said}")


def packed(dtype: torch.dtype, given: argparse.Namespace) -> None:
    """Measure sequences of different lengths, one after another."""
    lengths, (heads, width) = [*given.packed], map(int, given.packed_heads.split("x"))
    size = (sum(lengths), heads, width)
    qkv = [torch.randn(size, device=device(), dtype=dtype, requires_grad=True) for _ in range(3)]
    kernels = {called: partial(by, name, lengths) for name, called in BACKENDS.items()}
    kernels_taken()
    with ending_after(given.limit / 2):  # which is a refusal like any other
        packed_attention(*qkv, lengths, who="taken")
    said = kernels_taken()
    own = next((called for called in BACKENDS.values() if f"packed by {called}" in said), "")
    rows = (x.detach().float().transpose(0, 1).split(lengths, dim=1) for x in qkv)
    parts = [((q @ k.mT / width**0.5).softmax(-1) @ v).transpose(0, 1) for q, k, v in zip(*rows, strict=True)]
    tokens = f"{len(lengths)} sequences of {min(lengths)} to {max(lengths)} tokens"
    print(f"\npacked, {tokens} x {heads} heads x {width}, {dtype}", flush=True)
    measure(kernels, own, qkv, torch.cat(parts), given)
    print(f"  {said}")


def by(name: str, lengths: Sequence[int], *qkv: Tensor) -> Tensor:
    q, k, v = qkv
    return packed_attention(q, k, v, lengths, backend=name)


def main() -> None:
    given = parse_arguments()
    on_gpu = device().type == "cuda"
    dtype = getattr(torch, given.dtype or ("bfloat16" if on_gpu else "float32"))
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}; medians of at most {given.rounds} rounds, * is what the product takes")
    for shape in given.shapes:
        plain(shape, dtype, given)
    if given.packed:
        packed(dtype, given)


if __name__ == "__main__":
    main()
