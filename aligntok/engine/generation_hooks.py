"""What happens between the steps of a generator's training: the loss by time, grids of samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor

from aligntok.data.transforms import to_picture
from aligntok.distributed import is_first, total
from aligntok.distributed.job import batched
from aligntok.io.pictures import image_grid, save_picture


@HOOKS.register_module()
class TimeBinsHook(Hook):
    """Writes the mean loss in each part of the time axis, over the steps since the last time, every `every` steps.

    The model gives `time_bins` (2, bins): sums of losses and their number. What was gathered since the last writing is
    not in a checkpoint, so after an interruption a first mean is of fewer steps.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, every: int) -> None:
        self.every = every
        self._sums: Tensor | None = None

    def after_train_iter(
        self, runner: Any, *args: Any, outputs: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        bins = (outputs or {})["time_bins"].detach()
        self._sums = bins if self._sums is None else self._sums + bins
        step = runner.iter + 1
        if step % self.every and step != runner.max_iters:
            return
        sums, counts = total(self._sums).tolist()
        self._sums = None
        if is_first():
            width = 1 / len(sums)
            scalars = {
                f"loss_at_time/{i * width:.2f}-{(i + 1) * width:.2f}": loss / number
                for i, (loss, number) in enumerate(zip(sums, counts, strict=True))
                if number
            }
            runner.visualizer.add_scalars(scalars, step=step)


@HOOKS.register_module()
class SampleGridHook(Hook):
    """Draws samples of fixed labels, from the seeds 0, 1, ..., with the averaged weights, every `every` steps,
    at the steps `at`, and after the last.

    The PNG goes to ``pictures/``, the same to TensorBoard. `inference` is the average's width or decay; None takes the
    weights as they are.
    """

    priority = "LOW"

    def __init__(
        self, labels: Sequence[int], every: int | None, at: Iterable[int], inference: float | None, batch_size: int = 16
    ) -> None:
        self.labels = list(labels)
        self.every = every
        self.at = set(at)
        self.inference = inference
        self.batch_size = batch_size

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        step = runner.iter + 1
        due = step == runner.max_iters or step in self.at or (self.every is not None and step % self.every == 0)
        if not due or not is_first():
            return
        picture = to_picture(image_grid(list(self._draw(runner))))
        path = runner.stage_dir / "pictures" / f"step_{step:08d}.png"
        save_picture(path, picture)
        runner.visualizer.get_backend("TensorboardVisBackend").add_image("samples", np.asarray(picture), step=step)

    def _draw(self, runner: Any) -> Tensor:
        if self.inference is not None:
            runner.ema.exchange(self.inference)
        try:
            parts = batched(range(len(self.labels)), self.batch_size)
            drawn = [runner.trained_model.sample([self.labels[i] for i in part], list(part)).cpu() for part in parts]
        finally:
            if self.inference is not None:
                runner.ema.exchange(self.inference)
        return torch.cat(drawn)
