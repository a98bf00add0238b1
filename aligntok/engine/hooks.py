"""What happens between training steps: averages, checkpoints, scalars, the progress line, pictures."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import HOOKS
from torch import Tensor
from tqdm import tqdm

from aligntok.device import AUTO, device, is_fast_in_bf16, precision_taken
from aligntok.distributed import is_first, mean_over_processes, total
from aligntok.distributed.job import batched
from aligntok.engine.checkpoints import CURE
from aligntok.engine.compile import FOLDER, is_compiled
from aligntok.engine.ema import LEAST_DECAY
from aligntok.engine.mmengine import Hook
from aligntok.engine.snapshots import write_snapshot
from aligntok.engine.trackers import add_picture
from aligntok.io.console import is_quiet, say
from aligntok.io.files import write_json, writing
from aligntok.io.pictures import captioned, image_grid, reconstruction_grid, save_picture, to_picture
from aligntok.ops.attention import kernels_taken


def is_due(runner: Any, every: int | None) -> bool:
    """Tell whether the step that was just made is a multiple of `every`, or the last."""
    step = runner.iter + 1
    return bool(step == runner.max_iters or (every is not None and step % every == 0))


@contextmanager
def visualizing(runner: Any) -> Iterator[Any]:
    """Yield a run's visualizer; what it cannot write inside is a WriteError that names its folder."""
    with writing(Path(runner._log_dir, "vis_data"), CURE):
        yield runner.visualizer


class OnceLoadedHook(Hook):
    """Calls a function before the first step of a start, once it is known that the training can go on."""

    priority = "HIGHEST"

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def before_train(self, runner: Any) -> None:
        self.call()


@HOOKS.register_module()
class KernelsHook(Hook):
    """Says before the first step that it compiles and in what it computes, where that is a question of the device, and
    after it by which kernels attention is computed.

    What can run is known when it did.
    """

    said = False

    def before_train(self, runner: Any) -> None:
        if told := _precision_in_words(runner.trained_model.precision, device()):
            runner.logger.info("precision: %s", told)
        if is_compiled(runner.trained_model):
            kept = os.environ.get(FOLDER, "no folder")
            runner.logger.info("compiling: the first steps take longer, this time; the code is kept in %s", kept)

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if not self.said and (taken := kernels_taken()):
            runner.logger.info("attention: %s", taken)
        self.said = True


def _precision_in_words(precision: str, where: torch.device) -> str | None:
    """Return what is to be told of a precision: what "auto" means on this device, and that bf16 is slow on it."""
    fast = is_fast_in_bf16(where)
    if precision == AUTO:
        taken = precision_taken(precision, where)
        return f"{taken}, which 'auto' means on this {where.type}: it is {'fast' if fast else 'slow'} in bf16"
    if precision == "bf16" and not fast:
        return f"bf16, in which this {where.type} is slower than in fp32; 'auto' takes it where it is fast alone"
    return None


@HOOKS.register_module()
class EMAUpdateHook(Hook):
    """Keeps the averages up to date, saves snapshots of them, and validates with them.

    `snapshot_every` steps apart, all power-function widths are written to ``ema_snapshots/`` (None: never); `inference`
    is the width or decay that validation uses, as the exported tokenizer does.
    """

    priority = "HIGH"

    def __init__(self, inference: float, snapshot_every: int | None = None) -> None:
        self.inference = inference
        self.snapshot_every = snapshot_every

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        runner.ema.update()
        step = runner.iter + 1
        if self.snapshot_every and step % self.snapshot_every == 0:
            widths = [which for which in runner.ema.kept if which < LEAST_DECAY]  # of others none is made later
            write_snapshot(runner.stage_dir, step, {str(width): runner.ema.state(width) for width in widths})

    def before_val_epoch(self, runner: Any) -> None:
        runner.ema.swap(self.inference)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        runner.ema.swap(self.inference)


@HOOKS.register_module()
class StepCheckpointHook(Hook):
    """Writes a checkpoint every `every` steps and after the last; ends the run where that failed."""

    priority = "VERY_LOW"

    def __init__(self, every: int) -> None:
        self.every = every

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        runner.checkpoints.check()
        if is_due(runner, self.every):
            runner.save_step(runner.iter + 1)


@HOOKS.register_module()
class ScalarsHook(Hook):
    """Writes losses, ratios, gradient norms, learning rates and images/s every `every` steps, averaged over processes.

    They go to ``scalars.json``, TensorBoard and other trackers through mmengine's visualizer; the progress hook shows
    the newest.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, every: int, global_batch_size: int) -> None:
        self.every = every
        self.global_batch_size = global_batch_size
        self._since = time.monotonic()
        self._steps = 0

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if self._steps == 0:
            self._since = time.monotonic()

    def after_train_iter(self, runner: Any, *args: Any, outputs: Any = None, **kwargs: Any) -> None:
        self._steps += 1
        if not is_due(runner, self.every):
            return
        scalars = average_scalars(outputs)
        scalars["images_per_second"] = self._steps * self.global_batch_size / (time.monotonic() - self._since)
        for side, rates in runner.optim_wrapper.get_lr().items():
            scalars[f"lr/{side.split('.')[0]}"] = rates[0]
        self._steps = 0
        runner.message_hub.update_info("scalars", scalars)
        if is_first():
            with visualizing(runner) as visualizer:
                visualizer.add_scalars(scalars, step=runner.iter + 1)
            runner.logger.info("step %d  %s", runner.iter + 1, "  ".join(f"{k} {v:.4g}" for k, v in scalars.items()))

    def before_val_epoch(self, runner: Any) -> None:
        self._steps = 0

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        if is_first() and metrics:
            with visualizing(runner) as visualizer:
                visualizer.add_scalars(dict(metrics), step=runner.iter)
            result = {"step": runner.iter, "seconds": runner.seconds, "metrics": dict(metrics)}
            write_json(runner.stage_dir / "result.json", result)


def average_scalars(outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the logged values as numbers, averaged over processes in one exchange."""
    names = [name for name, value in outputs.items() if value.numel() == 1]
    values = torch.stack([outputs[name].detach().float().reshape(()).cpu() for name in names])
    place = next((v.device for v in outputs.values() if v.is_cuda), values.device)
    return dict(zip(names, mean_over_processes(values.to(place)).tolist(), strict=True))


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows a live bar with ETA, images/s and losses on a terminal, or a line every `every` steps otherwise."""

    priority = "LOWEST"

    def __init__(self, name: str, every: int, global_batch_size: int) -> None:
        self.name = name
        self.every = every
        self.global_batch_size = global_batch_size
        self._bar: Any = None

    def before_train_epoch(self, runner: Any) -> None:
        if is_first():
            live = sys.stderr.isatty() and not is_quiet()
            options: dict[str, Any] = dict(disable=not live, dynamic_ncols=True, leave=True)
            self._bar = tqdm(total=runner.max_iters, initial=runner.iter, desc=self.name, unit="step", **options)
            self._first, self._began = runner.iter, time.monotonic()

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if self._bar is None:
            return
        self._bar.update()
        if not is_due(runner, self.every):
            return
        scalars = runner.message_hub.get_info("scalars")
        losses = [f"{k.split('/')[1]} {v:.3f}" for k, v in scalars.items() if k.startswith("loss/")]
        text = "  ".join([f"{scalars['images_per_second']:.1f} images/s", *losses])
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
            return
        step, last = runner.iter + 1, runner.max_iters
        left = (time.monotonic() - self._began) / (step - self._first) * (last - step)
        say(f"{self.name}: step {step}/{last}  ETA {tqdm.format_interval(round(left))}  {text}")

    def after_train_epoch(self, runner: Any, metrics: Any = None) -> None:
        if self._bar is not None:
            self._bar.close()


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
        if not is_due(runner, self.every):
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
            with visualizing(runner) as visualizer:
                visualizer.add_scalars(scalars, step=runner.iter + 1)


@HOOKS.register_module()
class PictureHook(Hook):
    """Draws a picture of the model every `every` steps (None: never), at the steps `at`, and after the last.

    `draw` makes a (3, H, W) in [-1, 1] of the model, or a picture. The PNG goes to ``pictures/``, the same under `name`
    to TensorBoard and other trackers. `inference` is the width or decay of the average that is drawn with; None: the
    weights as they are.
    """

    priority = "LOW"

    def __init__(
        self,
        name: str,
        draw: Callable[[Any], Any],
        every: int | None,
        inference: float | None,
        at: Iterable[int] = (),
    ) -> None:
        self.name = name
        self.draw = draw
        self.every = every
        self.inference = inference
        self.at = set(at)

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        step = runner.iter + 1
        if not (is_due(runner, self.every) or step in self.at):
            return
        with nullcontext() if self.inference is None else runner.ema.swapped(self.inference):
            drawn = self.draw(runner.trained_model)  # by all: where they share the weights, it takes all of them
        if not is_first():
            return
        picture = to_picture(drawn) if isinstance(drawn, Tensor) else drawn
        save_picture(runner.stage_dir / "pictures" / f"step_{step:08d}.png", picture)
        with visualizing(runner) as visualizer:
            add_picture(visualizer, self.name, np.asarray(picture), step)


def draw_reconstructions(model: Any, images: Sequence[Tensor]) -> Tensor:
    """Return input | reconstruction | error of `images`, (3, H, W) in [-1, 1], of any sizes."""
    model.eval()
    pairs = [pair for image in images for pair in model.val_step({"images": image[None]})]
    model.train()
    return reconstruction_grid([p["images"].cpu() for p in pairs], [p["reconstruction"].cpu() for p in pairs])


def draw_samples(
    model: Any, words: Sequence[Any], seeds: Sequence[int], captions: Sequence[str] = (), batch_size: int = 16
) -> Any:
    """Return samples of `words`, labels or prompts, in a grid; with captions on a sheet, each above its own."""
    parts = [slice(part.start, part.stop) for part in batched(range(len(words)), batch_size)]
    images = [image for part in parts for image in model.sample(words[part], seeds[part]).cpu()]
    return captioned(images, captions) if captions else image_grid(images)
