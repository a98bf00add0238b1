"""The training loop: an iteration is one optimiser step, however many micro-batches it takes."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, IterBasedTrainLoop, ValLoop
from torch.utils.data import DataLoader

from aligntok.data.loader import explaining_loader_errors
from aligntok.distributed.job import sigterm_was_sent
from aligntok.errors import Preempted


class StepBatch(NamedTuple):
    """What one optimiser step of this process sees: the step's number in the stage, and its micro-batches."""

    step: int
    micro_batches: list[dict[str, Any]]


@LOOPS.register_module()
class StepLoop(IterBasedTrainLoop):
    """mmengine's iteration loop in optimiser steps, going on at any step without reading what was seen before.

    The data loader's batch sampler has `start_step` (where to go on) and `accumulation` (micro-batches a step).
    Validation runs every `val_interval` steps (None: never in between) and after the last step.
    """

    def __init__(self, runner: Any, dataloader: DataLoader[Any], max_iters: int, val_interval: int | None) -> None:
        BaseLoop.__init__(self, runner, dataloader)  # the parent's __init__ would start the workers at once
        self._max_iters = max_iters
        self._max_epochs = 1
        self._epoch = 0
        self._iter = 0
        self.val_begin = 1
        self.val_interval = val_interval or max_iters
        self.stop_training = False

    def start_at(self, step: int) -> None:
        """Go on after `step` optimiser steps."""
        self._iter = step

    def run(self) -> Any:
        """Train to the last step."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        sampler: Any = self.dataloader.batch_sampler
        sampler.start_step = self._iter
        with explaining_loader_errors():
            batches = iter(self.dataloader)
        if self._iter >= self._max_iters and self.runner.val_loop is not None:
            self.runner.val_loop.run()  # it was stopped between its last step and the validation after it
        with explaining_loader_errors():  # a worker's death interrupts whatever the process is doing
            while self._iter < self._max_iters and not self.stop_training:
                if not self.runner.model.training:  # a validation was in between
                    self.runner.model.train()
                self.run_iter(StepBatch(self._iter, [next(batches) for _ in range(sampler.accumulation)]))
                if sigterm_was_sent():
                    self._stop_early()
                due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
                if self.runner.val_loop is not None and due:
                    self.runner.val_loop.run()
        del batches  # stops the workers
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _stop_early(self) -> None:
        runner: Any = self.runner
        if runner.saved_step != self._iter:
            runner.save_step(self._iter)
        raise Preempted(
            f"stopped by SIGTERM after step {self._iter} of {self._max_iters} in {runner.work_dir}; a checkpoint is "
            "written, and the same command goes on from it"
        )


@LOOPS.register_module()
class ShareValLoop(ValLoop):
    """mmengine's validation loop for held-out images that are shared out without padding: each is measured once.

    `num_images` is their number over all processes.
    """

    def __init__(self, runner: Any, dataloader: DataLoader[Any], evaluator: Any, num_images: int) -> None:
        BaseLoop.__init__(self, runner, dataloader)  # the parent's __init__ asks for OpenMMLab's data-set attributes
        self.evaluator = runner.build_evaluator(evaluator)
        self.num_images = num_images

    def run(self) -> dict[str, float]:
        """Measure all held-out images and return the metrics."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        self.runner.model.eval()
        with explaining_loader_errors():
            for batch in self.dataloader:
                self.evaluator.process(data_samples=self.runner.model.val_step(batch), data_batch=batch)
        metrics: dict[str, float] = self.evaluator.evaluate(self.num_images)
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics
