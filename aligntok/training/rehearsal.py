"""A step of tensors without values: what it holds, moment by moment, on a GPU that need not be there."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from aligntok import device
from aligntok.distributed import alone
from aligntok.errors import ConfigError, first_line
from aligntok.ops import attention
from aligntok.training.stages import MicroBatch, Stage

#: What autocast computes in float32 on a GPU but not on a CPU, and what in the widest type given, of torch's own lists.
IN_FLOAT32 = (
    *("layer_norm", "native_layer_norm", "group_norm", "rms_norm", "softmax.int", "log_softmax.int", "logsumexp"),
    *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"),
    *("_upsample_bicubic2d_aa", "exp", "log", "rsqrt", "reciprocal", "pow.Tensor_Scalar", "pow.Tensor_Tensor"),
    *("norm.Scalar", "norm.ScalarOpt_dim", "linalg_vector_norm", "sum", "sum.dim_IntList", "cumsum", "softplus"),
    "cosine_similarity",
)
IN_THE_WIDEST = ("addcmul", "addcdiv")
#: What adds up in any order on a GPU, and has no other form there: of torch's own list, under the names of ATen.
VARIES = {
    *("_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward"),
    *("adaptive_max_pool3d_backward", "avg_pool3d_backward", "fractional_max_pool2d_backward"),
    *("fractional_max_pool3d_backward", "max_pool3d_with_indices_backward", "max_unpool2d", "max_unpool3d"),
    *("upsample_linear1d_backward", "upsample_trilinear3d_backward", "grid_sampler_2d_backward"),
    *("grid_sampler_3d_backward", "reflection_pad1d_backward", "reflection_pad3d_backward"),
    *("nll_loss2d_forward", "_ctc_loss_backward", "put", "put_", "histc"),
}
_BEGINNING = 100  # moments of it at least, which of a tiny model are a larger share
_SAMPLES = (2, 3)  # images of the two micro-batches that are looked at; of one image torch makes fewer copies


class LiveTensors(TorchDispatchMode):
    """Bytes of all tensors on the CPU that operations took or gave and that live, where torch has no count.

    A tensor's storage counts once, from the first operation that sees it until it is freed: weights, activations kept
    for the backward pass, gradients, the state of optimisers. What a kernel allocates for itself alone does not, nor do
    the storages of the tensors `apart`.
    """

    def __init__(self, apart: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        #: What was made and freed, in order: the number of a storage, and its bytes, negative when it is freed.
        self.course: list[tuple[int, int]] = []
        self._most = 0
        self._made = 0
        self._known: dict[int, tuple[Any, int]] = {each.untyped_storage()._cdata: (None, -1) for each in apart}

    def peak(self) -> int:
        """Return the peak since the last call, or the beginning, and begin anew."""
        most, self._most = self._most, self.live
        return most

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor's storage in the course of things; -1 for one that is not in it."""
        return self._known.get(tensor.untyped_storage()._cdata, (None, -1))[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        self._see((args, given))
        result = func(*args, **given)
        self._see(result)
        return result

    def _see(self, tree: Any) -> None:
        for value in tree_iter(tree):
            if isinstance(value, Tensor) and value.device.type == "cpu" and value.layout is torch.strided:
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    freed = partial(self._forget, storage._cdata, storage.nbytes(), self._made)
                    self._known[storage._cdata] = weakref.ref(storage, freed), self._made
                    self._count(self._made, storage.nbytes())
                    self._made += 1
        self._most = max(self._most, self.live)

    def _count(self, number: int, size: int) -> None:
        self.live += size
        self.course.append((number, size))

    def _forget(self, key: int, size: int, number: int, _: Any) -> None:
        self._known.pop(key, None)
        self._count(number, -size)


class Course(NamedTuple):
    """What a micro-batch of two images holds, moment by moment, and what each further image adds; gradients apart.

    Arrays of bytes, equally long.
    """

    activations: Any
    a_further_image: Any
    gradients: Any

    def peak(self, images: int, gradients: int, whole: bool) -> int:
        """Return the most bytes at once beside `gradients`, what a process has of them at the end.

        whole: whether they are there from the beginning, as after another micro-batch.
        """
        return max(0, math.floor(self._above(gradients, whole, images).max()))

    def largest(self, room: float, gradients: int, whole: bool) -> int:
        """Return the most images whose peak fits into `room` bytes; 0 for none."""
        over, each = room - self._above(gradients, whole, 0), np.maximum(self.a_further_image, 1e-9)
        return max(0, math.floor((over / each).min()))

    def _above(self, gradients: int, whole: bool, images: int) -> Any:
        total = max(float(self.gradients[-1]), 1.0)
        there = float(gradients) if whole else self.gradients * (gradients / total)
        return self.activations + (images - _SAMPLES[0]) * self.a_further_image + there - gradients


def watch(stage: Stage, model: Any) -> tuple[Course | None, str]:
    """Take a micro-batch of two images and one of three through a model on the meta device, forward and backward.

    Returns what they hold; or None, and the reason why a component cannot be run without values.
    """
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        _without_values(model, mode)
        with mode, _as_on_a_gpu(), alone():
            few, more = (_held(stage, model, images) for images in _SAMPLES)
    except Exception as error:  # whatever a component does with values that are not there
        return None, first_line(error)
    # Tables of positions come once, noise is drawn image by image: both at the beginning. From there on all is alike.
    alike = min(len(few), len(more))
    few, more = few[-alike:], more[-alike:]
    apart = np.flatnonzero((np.sign(np.diff(few, axis=0)) != np.sign(np.diff(more, axis=0))).any(axis=1))
    begin = int(apart[-1]) + 1 if len(apart) else 0
    if begin > max(alike / 10, _BEGINNING):
        return None, "micro-batches of two and of three images do not go the same way"
    return Course(few[begin:, 0], (more - few)[begin:, 0], few[begin:, 1]), ""


def _held(stage: Stage, model: Any, images: int) -> Any:
    """Return the bytes (moments, 2) of activations and of gradients, at every moment of a micro-batch."""
    model.zero_grad()
    with LiveTensors([*model.parameters(), *model.buffers()]) as live:
        _go(stage, model, images)
        course = np.array(live.course, dtype=np.int64)
        numbers = [live.number(p.grad) for p in model.parameters() if p.grad is not None]
    are_gradients = np.isin(course[:, 0], numbers)
    return np.where(np.stack([~are_gradients, are_gradients], 1), course[:, 1:], 0).cumsum(axis=0)


def _go(stage: Stage, model: Any, images: int) -> None:
    """Take a micro-batch of so many images forward and backward, all losses active."""
    batch = tree_map(lambda value: torch.as_tensor(value)[None].repeat_interleave(images, 0), stage.an_item())
    model.backward(batch, MicroBatch(stage.settings.steps - 1, 0, 1))


class _Names(TorchDispatchMode):
    """The names of the operations that are computed, each once, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] = None
        return func(*args, **(kwargs or {}))


def check_repeatable(stage: Stage) -> None:
    """Raise ConfigError for an operation of a stage's step that has no deterministic form on a GPU, as far as is known.

    The step goes forward and backward without values; where a component cannot, nothing is known before the first.
    """
    names, model = _Names(), stage.build_model()
    with suppress(Exception):  # whatever a component does with values that are not there
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        _without_values(model, mode)
        with mode, _as_on_a_gpu(), alone(), names:
            _go(stage, model, _SAMPLES[0])
    for name in names.seen:
        if name in VARIES:
            raise ConfigError(stage.where + ": " + device.varying(name))


def _without_values(model: nn.Module, mode: FakeTensorMode) -> None:
    """Make a model's tensors, on the meta device, such as say that they are on the CPU."""
    made: dict[int, Tensor] = {}

    def on_the_cpu(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            fake = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
            is_weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
        return made[id(tensor)]

    for module in model.modules():
        tensors: tuple[Any, ...] = (module._parameters, module._buffers)
        for own in tensors:
            own.update({name: on_the_cpu(tensor) for name, tensor in own.items() if tensor is not None})


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Have autocast choose what is computed in which type as on a GPU, and attention keep no matrix of all tokens."""
    with (
        torch.library._scoped_library("aten", "IMPL") as library,
        mock.patch.object(attention, "_choose", return_value="sdpa"),
        mock.patch.object(attention, "half_on_cpu", return_value=False),
        mock.patch.object(device, "on_plain_cpu", return_value=False),
        mock.patch.object(F, "scaled_dot_product_attention", _fused_attention),
    ):
        for name in (*IN_FLOAT32, *IN_THE_WIDEST):
            library.impl(name, _casting(name), "AutocastCPU")
        yield


def _casting(name: str) -> Callable[..., Any]:
    base, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, base), overload or "default")
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def casting(*args: Any, **kwargs: Any) -> Any:
        low = [each.dtype for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
        wanted = torch.float32 if name in IN_FLOAT32 or torch.float32 in low else None
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            args, kwargs = tree_map(partial(_cast, to=wanted), (args, kwargs))
            return operation(*args, **kwargs)

    return casting


def _cast(value: Any, to: torch.dtype | None) -> Any:
    is_low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.to(to) if is_low and to is not None else value


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **options: Any
) -> Tensor:
    """Attention by whichever fused kernel: of it stay what goes in, what comes out, and a number for each query."""
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (each.to(torch.get_autocast_dtype("cpu")) for each in (q, k, v))
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # of what is there
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, -math.inf)
    output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=attn_mask)[0]
    return output
