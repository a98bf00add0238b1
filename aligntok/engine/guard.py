"""Which steps are left out: those whose losses or gradients are not finite, or whose gradients are far too large."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from aligntok.errors import DivergenceError

logger = logging.getLogger("aligntok.engine")

WINDOW = 100  # norms of a part that the typical one is taken from; a part is not judged before so many


class StepGuard:
    """Judges a step before it is taken, by what all processes see alike.

    `spike_factor`: a part whose gradient norm is more than so many times its median over the last 100 steps taken has
    a spike (None: no such check). `max_skipped` steps left out in a row stop the training.
    """

    def __init__(self, max_skipped: int, spike_factor: float | None) -> None:
        self.max_skipped = max_skipped
        self.spike_factor = spike_factor
        self.skipped = 0
        self.skipped_in_a_row = 0
        self._norms: dict[str, deque[float]] = {}

    def passes(self, norms: Mapping[str, float], losses_are_finite: bool) -> bool:
        """Tell whether the step should be taken; remember its norms if so.

        `norms` are the parts' gradient norms over the whole batch; 0 is a part without gradients. Raises
        DivergenceError when more than `max_skipped` steps in a row should not.
        """
        fault = self._fault(norms, losses_are_finite)
        if fault is None:
            self.skipped_in_a_row = 0
            for name, norm in norms.items():
                if norm:
                    self._norms.setdefault(name, deque(maxlen=WINDOW)).append(norm)
            return True
        self.skipped += 1
        self.skipped_in_a_row += 1
        logger.warning("step left out (%d in a row): %s", self.skipped_in_a_row, fault)
        if self.skipped_in_a_row > self.max_skipped:
            raise DivergenceError(
                f"{self.skipped_in_a_row} steps in a row had to be left out, the latest for {fault}; max_skipped_steps "
                f"allows {self.max_skipped}. Training stopped, and the checkpoints hold the weights from before. "
                "Lower the learning rate, set clip_grad_norm, or train in fp32; if the gradients have good reason to "
                "be so large, raise spike_factor or set it to None"
            )
        return False

    def _fault(self, norms: Mapping[str, float], losses_are_finite: bool) -> str | None:
        broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
        if broken:
            return f"gradients that are not finite (parts: {', '.join(broken)})"
        if not losses_are_finite:
            return "a loss that is not finite"
        for name, norm in norms.items():
            typical = self._typical(name)
            if self.spike_factor is not None and typical is not None and norm > self.spike_factor * typical:
                return f"a gradient norm of {norm:.4g} in {name}, {norm / typical:.0f} times the usual {typical:.4g}"
        return None

    def _typical(self, name: str) -> float | None:
        norms = self._norms.get(name, ())
        return statistics.median(norms) if len(norms) == WINDOW else None

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        norms = {name: list(values) for name, values in self._norms.items()}
        return {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row, "norms": norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self._norms = {name: deque(values, maxlen=WINDOW) for name, values in state["norms"].items()}
