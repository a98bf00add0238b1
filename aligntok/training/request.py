"""What a command that trains, or exports what was trained, is told beside the config."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from aligntok.settings import Share, settings


@settings
class TrainRequest:
    """Train a tokenizer, stage after stage, and a generator. The same command started again goes on where it
    stopped.
    """

    config: str | Path
    """A config file, such as configs/aligntok_dinov2_f16d32.py."""
    stage: str | None = None
    """Run only the stage of this name."""
    work_dir: str | Path | None = None
    """Where everything is written; None: work_dirs/<config name>."""
    dry_run: bool = False
    """Print what each stage would do, and stop."""
    cfg_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Override config keys, such as seed=1 stages.0.steps=10."""

    @property
    def options(self) -> dict[str, Any]:
        """The config keys that are overridden, the work folder among them."""
        return self.cfg_options if self.work_dir is None else {**self.cfg_options, "work_dir": str(self.work_dir)}


@settings(renamed={"sigma_rel": "ema"})
class ExportRequest:
    """Write a tokenizer as a folder that anyone can load."""

    source: str | Path
    """A work folder or stage, a saved tokenizer, a published checkpoint, a hub id."""
    out: str | Path
    """The folder to write."""
    weights: Literal["raw", "ema"] | None = None
    """Of a work folder; None: averages where they are kept."""
    ema: Share | None = None
    """Width of the average; one that was not kept is made from the snapshots."""
