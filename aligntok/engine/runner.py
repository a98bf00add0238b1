"""mmengine's Runner for one stage: its loops, its start from other weights or from the newest checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, cast

from mmengine.logging import MMLogger
from mmengine.registry import LOOPS
from torch import nn
from torch.utils.data import DataLoader

from aligntok.data.loader import explaining_loader_errors
from aligntok.device import device
from aligntok.distributed import any_process, barrier, is_first
from aligntok.distributed.dcp import sharded
from aligntok.distributed.job import sigterm_was_sent
from aligntok.distributed.parallel import Parallel, parallelise
from aligntok.engine.ahead import ahead
from aligntok.engine.checkpoints import (
    DAMAGED,
    Checkpoint,
    PartStates,
    join,
    load_parts,
    open_newest,
    open_newest_alike,
    part_states,
    read_frozen,
    write_frozen,
)
from aligntok.engine.ema import EMASettings, WeightAverages
from aligntok.engine.log import log_to
from aligntok.engine.mmengine import BaseLoop, IterBasedTrainLoop, Runner, ValLoop
from aligntok.engine.saving import CheckpointWriter
from aligntok.engine.schedules import go_on_schedules, keeping_rates
from aligntok.engine.snapshots import forget_later
from aligntok.errors import CheckpointError, DataError, Preempted
from aligntok.io.files import reading
from aligntok.io.values import number

#: What a training may take of another's checkpoint, by the name that it has there.
_TAKEN = {"weights": "parts", "averages": "ema", "optimizer": "optimizers"}


class StageRunner(Runner):
    """One stage as an mmengine run; its checkpoints, EMA and start are AlignTok's own.

    The model has `trained_parts()`, `frozen_parts()` and `averaged_parts()`, each a dict of modules, and
    `load_start(states)`, called once. `model` builds it, once the run is seeded; `start` returns those states, of the
    parts that the stage begins from (None: as the model was built); `taken`, a folder, and which of "averages" and
    "optimizer" it begins with from there. `ema` says which averages are kept, None
    for none; `keep` is the number of checkpoints that stay, and `keep_every` the steps between those that stay for
    good; `asynchronous` ones are written while the training goes on. `parallel` says how processes hold the model.
    """

    def __init__(
        self,
        *args: Any,
        start: Callable[[], PartStates | None],
        taken: tuple[Path, Collection[str]] | None = None,
        ema: EMASettings | None = None,
        keep: int = 2,
        keep_every: int | None = None,
        asynchronous: bool = False,
        parallel: Parallel = "replicate",
        **kwargs: Any,
    ) -> None:
        self._start, self._taken = start, taken
        self._averages = ema
        self._parallel = parallel
        self.ema: WeightAverages | None = None
        self._seconds_before = 0.0
        self._began = time.monotonic()
        super().__init__(*args, **kwargs)
        self.checkpoints = CheckpointWriter(self.work_dir, keep, keep_every, asynchronous)

    @property
    def trained_model(self) -> Any:
        """The model; no wrapper of mmengine's is around it."""
        return self.model

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that this stage has taken, interrupted runs included up to their last checkpoint."""
        return self._seconds_before + time.monotonic() - self._began

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Build mmengine's logger: a file for each process, warnings of the first one on the terminal too.

        AlignTok's own loggers write to the same places: see :func:`~aligntok.engine.log.log_to`.
        """
        log = super().build_logger(log_level, log_file, distributed=True, **kwargs)
        log_to(log)
        return log

    def build_model(self, model: Any) -> Any:
        """Build the model, by the function that was given for it, now that the run is seeded."""
        return super().build_model(model if isinstance(model, nn.Module) else model())

    def wrap_model(self, model_wrapper_cfg: Any, model: Any) -> Any:
        """Put the model on its device and spread it over the processes, in place of mmengine's wrappers."""
        if self._parallel == "replicate":
            model = model.to(device())
        parallelise(model, self._parallel)
        return model.to(device())  # of what is shared out, shares are there; all of it may be more than fits

    def _init_model_weights(self) -> None:
        """Leave them as they are: the model is built with them, and every process has the first one's."""

    def train(self) -> Any:
        """Train to the end; a checkpoint that is being written then becomes whole, after an error if it can."""
        try:
            model = super().train()
        except BaseException:  # Ctrl-C, too
            self.checkpoints.give_up()
            raise
        self.checkpoints.finish()
        return model

    def load_or_resume(self) -> None:
        """Go on from the stage's newest checkpoint that can be read, or begin the stage."""
        model = self.trained_model
        self._began = time.monotonic()
        found = open_newest_alike(self.work_dir)
        if is_first():
            forget_later(self.work_dir, found.step if found else 0)
        if found is None:
            model.load_start(self._start())
            write_frozen(self.work_dir, model.frozen_parts(), model.trained_parts())
        self.ema = self._new_averages(model)
        if found is not None:
            with reading(found.path, CheckpointError, DAMAGED):
                self._go_on(model, found)
        elif self._taken is not None:
            self._take(*self._taken)
        self._has_loaded = True

    def _new_averages(self, model: Any) -> WeightAverages | None:
        """Return averages that begin as the weights are now; None where none are kept."""
        kept = self._averages
        return None if kept is None else WeightAverages(model.averaged_parts(), kept.sigma_rel, kept.decays)

    def _take(self, folder: Path, what: Collection[str]) -> None:
        """Begin with averages and moments of another training of the same model; rates and steps are this one's."""
        other = open_newest(folder)
        assert other is not None  # its weights were read from it
        content, optimizers = self._content(other, {*what} - {"weights"}), cast(Any, self.optim_wrapper)
        with reading(other.path, CheckpointError, DAMAGED):
            if "averages" in what and self.ema is not None:
                if content["ema"] is None:
                    raise CheckpointError(f"{folder} keeps no EMA; leave 'averages' out of init_from.take")
                self.ema.load_state_dict(content["ema"])
            if "optimizer" in what:
                with keeping_rates(*(side.optimizer for side in optimizers.values())):
                    optimizers.load_state_dict({**content["optimizers"], "guard": optimizers.guard.state_dict()})

    def _content(self, found: Checkpoint, what: Collection[str] = tuple(_TAKEN)) -> dict[str, Any]:
        """Return what a checkpoint of this model has, shares of what is shared out, read into the model."""
        optimizers: Any = self.optim_wrapper
        groups = {side: wrapper.optimizer.param_groups for side, wrapper in optimizers.items()}
        owners = {side: [p for group in own for p in group["params"]] for side, own in groups.items()}
        moments = {"sides": {side: {"state": dict(enumerate(own))} for side, own in owners.items()}}
        like = sharded({**self._weights(), "optimizers": moments})
        left = {own for name, own in _TAKEN.items() if name not in what}
        asked = {name: value for name, value in found.content.items() if name not in left}
        content: dict[str, Any] = found.load(asked, like)
        return content

    def _go_on(self, model: Any, found: Checkpoint) -> None:
        optimizers: Any = self.optim_wrapper
        content = self._content(found)
        states = join(read_frozen(self.work_dir), content["parts"])
        source = f"the checkpoint of step {content['step']} in {self.work_dir}"
        load_parts({**model.frozen_parts(), **model.trained_parts()}, states, source)
        load = partial(optimizers.load_state_dict, content["optimizers"])
        go_on_schedules(self._schedulers(), content["schedulers"], content["step"], load)
        if self.ema is not None and content["ema"] is not None:
            self.ema.load_state_dict(content["ema"])
        else:
            self.ema = self._new_averages(model)  # asked for since: they begin as the weights that were just read
        loop: Any = self.train_loop
        loop.start_at(content["step"])
        self._seconds_before = number(content["seconds"])
        self.checkpoints.saved = self.checkpoints.begun = content["step"]
        self.logger.info("going on after step %d", content["step"])

    def _schedulers(self) -> list[Any]:
        found: Any = self.param_schedulers or []
        return [s for group in found.values() for s in group] if isinstance(found, dict) else list(found)

    def _weights(self) -> dict[str, Any]:
        """Return what a step changes of weights and averages, by the names of a checkpoint."""
        parts = part_states(self.trained_model.trained_parts(), frozen=False)
        return {"parts": parts, "ema": self.ema.state_dict() if self.ema else None}

    def save_step(self, step: int) -> None:
        """Write the checkpoint after `step` steps, or begin to; collective."""
        optimizers: Any = self.optim_wrapper
        content = {
            **self._weights(),
            "optimizers": optimizers.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self._schedulers()],
            "ema_inference": self._averages.inference if self._averages else None,
            "seconds": self.seconds,
        }
        self.checkpoints.write(step, content)

    @property
    def stage_dir(self) -> Path:
        """The stage's folder."""
        return Path(self.work_dir)


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
        with explaining_loader_errors():
            left = range(self._iter, self._max_iters)
            taken = ([next(batches) for _ in range(sampler.accumulation)] for _ in left)
            steps = ahead(taken, self.runner.model)
            step = next(steps, None)
            while step is not None and not self.stop_training:
                if not self.runner.model.training:  # a validation was in between
                    self.runner.model.train()
                self.run_iter(StepBatch(self._iter, step))
                if sigterm_was_sent():
                    self._save()
                    raise Preempted(
                        f"stopped by SIGTERM after step {self._iter} of {self._max_iters} in {self.runner.work_dir}; a "
                        "checkpoint is written, and the same command goes on from it"
                    )
                due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
                if self.runner.val_loop is not None and due:
                    self.runner.val_loop.run()
                step = self._next(steps)
        if self.stop_training:  # by a hook: what was trained since the last checkpoint is kept
            self._save()
        del batches  # stops the workers
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _save(self) -> None:
        """Have a checkpoint of this step, whole; collective."""
        runner: Any = self.runner
        if runner.checkpoints.begun != self._iter:
            runner.save_step(self._iter)
        runner.checkpoints.finish()

    def _next(self, steps: Iterator[list[dict[str, Any]]]) -> list[dict[str, Any]] | None:
        """Return the micro-batches of the next step, None after the last; collective where data may stay away.

        Then a checkpoint is written before the error goes on: what was trained since the last one cost more than it.
        """
        if not getattr(self.dataloader.dataset, "may_stay_away", False):
            return next(steps, None)
        step, lost = None, None
        try:
            step = next(steps, None)
        except DataError as error:
            lost = error
        if any_process(lost is not None):
            self._save()
            if lost is not None:
                raise lost
            barrier()  # here the process that lost its data tells the others
        return step


@LOOPS.register_module()
class ShareValLoop(ValLoop):
    """mmengine's validation loop for held-out images that are shared out: each is measured once.

    `num_images` is their number over all processes. The model sees as many batches in every process, since they may
    share out its weights; `counted` tells which of this process's are measured (None: all). `between` has other batches
    and metrics for the time before the last step, as keywords of the same names (None: the same).
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader[Any],
        evaluator: Any,
        num_images: int,
        counted: Sequence[bool] | None = None,
        between: Mapping[str, Any] | None = None,
    ) -> None:
        BaseLoop.__init__(self, runner, dataloader)  # the parent's __init__ asks for OpenMMLab's data-set attributes
        self.evaluator = runner.build_evaluator(evaluator)
        self.num_images = num_images
        self.counted = counted
        self.between = None if between is None else ShareValLoop(runner, num_images=num_images, **between)

    def run(self) -> dict[str, float]:
        """Measure all held-out images and return the metrics."""
        if self.between is not None and self.runner.iter < self.runner.max_iters:
            return self.between.run()
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        self.runner.model.eval()
        with explaining_loader_errors():
            for batch, counts in zip(self.dataloader, self.counted or repeat(True), strict=False):
                found = self.runner.model.val_step(batch)
                if counts:
                    self.evaluator.process(data_samples=found, data_batch=batch)
        metrics: dict[str, float] = self.evaluator.evaluate(self.num_images)
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics
