"""mmengine's Runner for one stage: begins from other weights, or goes on from the stage's newest checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

from aligntok.engine.checkpoints import (
    PartStates,
    load_parts,
    part_states,
    read_frozen,
    read_newest,
    write_checkpoint,
    write_frozen,
)
from aligntok.engine.distributed import barrier, is_first
from aligntok.engine.ema import PowerFunctionEMA


class StageRunner(Runner):
    """One stage as an mmengine run; its checkpoints, EMA and start are AlignTok's own.

    `start` returns the states of the parts that the stage begins from (None: as the model was built). `ema` is
    ``dict(sigma_rel=[...], inference=width)`` or None; `keep` the number of checkpoints that stay.
    """

    def __init__(
        self,
        *args: Any,
        start: Callable[[], PartStates] | None = None,
        ema: Mapping[str, Any] | None = None,
        keep: int = 2,
        **kwargs: Any,
    ) -> None:
        self._start = start
        self._ema_config = ema
        self.keep = keep
        self.ema: PowerFunctionEMA | None = None
        self._seconds_before = 0.0
        self._began = time.monotonic()
        super().__init__(*args, **kwargs)

    @property
    def trained_model(self) -> Any:
        """The model without mmengine's wrapper."""
        return getattr(self.model, "module", self.model)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that this stage has taken, interrupted runs included up to their last checkpoint."""
        return self._seconds_before + time.monotonic() - self._began

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Build mmengine's logger; its details go to the log file, only warnings to the terminal."""
        log = super().build_logger(log_level, log_file, **kwargs)
        for handler in log.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
        return log

    def load_or_resume(self) -> None:
        """Go on from the stage's newest checkpoint that can be read, or begin the stage."""
        model = self.trained_model
        self._began = time.monotonic()
        content = read_newest(self.work_dir)
        if content is None:
            self._begin(model)
        if self._ema_config is not None:
            averaged = {name: part for name, part in model.trained_parts().items() if name in model.tokenizer_parts}
            self.ema = PowerFunctionEMA(averaged, self._ema_config["sigma_rel"])
        if content is not None:
            self._go_on(model, content)
        self._has_loaded = True

    def _begin(self, model: Any) -> None:
        if self._start is not None:
            states = self._start()
            wanted = {**model.trained_parts(), **model.frozen_parts()}
            load_parts({n: p for n, p in wanted.items() if n in states}, states, "what the stage starts from")
        model.start_teacher()
        if is_first():
            write_frozen(self.work_dir, model.frozen_parts())
        barrier()

    def _go_on(self, model: Any, content: Mapping[str, Any]) -> None:
        load_parts(model.frozen_parts(), read_frozen(self.work_dir), f"{self.work_dir}/frozen.safetensors")
        load_parts(model.trained_parts(), content["parts"], f"the checkpoint of step {content['step']}")
        optimizers: Any = self.optim_wrapper
        optimizers.load_state_dict(content["optimizers"])
        if self.ema is not None and content["ema"] is not None:
            self.ema.load_state_dict(content["ema"])
        for scheduler, state in zip(self._schedulers(), content["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        loop: Any = self.train_loop
        loop.start_at(content["step"])
        self._seconds_before = content["seconds"]
        self.logger.info("going on after step %d", content["step"])

    def _schedulers(self) -> list[Any]:
        found: Any = self.param_schedulers or []
        return [s for group in found.values() for s in group] if isinstance(found, dict) else list(found)

    def save_step(self, step: int) -> None:
        """Write the checkpoint after `step` steps; collective, the first process writes."""
        if is_first():
            optimizers: Any = self.optim_wrapper
            content = {
                "parts": part_states(self.trained_model.trained_parts()),
                "optimizers": optimizers.state_dict(),
                "schedulers": [scheduler.state_dict() for scheduler in self._schedulers()],
                "ema": self.ema.state_dict() if self.ema else None,
                "ema_inference": self._ema_config["inference"] if self._ema_config else None,
                "seconds": self.seconds,
            }
            write_checkpoint(self.work_dir, step, content, self.keep)
        barrier()

    @property
    def stage_dir(self) -> Path:
        """The stage's folder."""
        return Path(self.work_dir)
