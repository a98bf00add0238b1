"""Training in several processes: gradients are averaged part by part while the next is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from aligntok.distributed import broadcast, world


class GradientReduction:
    """Averages gradients over processes part by part, each part's exchange running while the next is computed."""

    def __init__(self) -> None:
        self._running: list[tuple[Any, Tensor, list[nn.Parameter]]] = []
        self._waiting: list[list[nn.Parameter]] = []
        self._missing: dict[nn.Parameter, int] = {}
        self._watches: list[Any] = []

    def start_when_ready(self, groups: Iterable[Sequence[nn.Parameter]]) -> None:
        """Begin to average each group's gradients once the backward pass has made all of them.

        Groups start in the order given, which every process must have alike: best that of the backward pass. Those
        with a parameter that gets no gradient wait for `finish`.
        """
        if world()[1] == 1:
            return
        self._waiting = [list(group) for group in groups]
        self._missing = {p: i for i, group in enumerate(self._waiting) for p in group if p.requires_grad}
        self._watches = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._missing]

    def _arrived(self, parameter: Tensor) -> None:
        self._missing.pop(parameter, None)  # type: ignore[call-overload]
        while self._waiting and not any(p in self._missing for p in self._waiting[0]):
            self.start(self._waiting.pop(0))

    def start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Begin to average the gradients of `parameters`; a collective call, in the same order on every process.

        A parameter without a gradient here takes part with zero, since another process may have one for it; one
        without any on every process stays without, so that optimisers pass it over as they do in one process.
        """
        size = world()[1]
        trained = [p for p in parameters if p.requires_grad]
        if size == 1 or not trained:
            return
        present = trained[0].new_tensor([float(p.grad is not None) for p in trained])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([*(g.reshape(-1) for g in gradients), present])
        self._running.append((dist.all_reduce(flat, async_op=True), flat, trained))

    def finish(self) -> None:
        """Wait for every exchange and put the means in place."""
        for watch in self._watches:
            watch.remove()
        for group in self._waiting:
            self.start(group)
        self._waiting, self._missing, self._watches = [], {}, []
        if not self._running:
            return
        size = world()[1]
        means: list[Tensor] = []
        present: list[Tensor] = []
        for work, flat, parameters in self._running:
            work.wait()
            flat /= size
            *parts, there = flat.split([*(p.numel() for p in parameters), len(parameters)])
            means += parts
            present.append(there)
        everything = [parameter for _, _, parameters in self._running for parameter in parameters]
        for parameter, mean, somewhere in zip(everything, means, torch.cat(present).tolist(), strict=True):
            parameter.grad = mean.view_as(parameter) if somewhere else None
        self._running.clear()


@MODEL_WRAPPERS.register_module()
class SelfReducing(nn.Module):
    """mmengine's model wrapper for a model that averages its own gradients (it walks its graph part by part).

    All it does is to give every process the first one's weights.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        broadcast([*module.parameters(), *module.buffers()])

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.train_step(*args, **kwargs)

    def val_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.val_step(*args, **kwargs)
