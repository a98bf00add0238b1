"""What differs between the settings that a stage was trained with so far and those it is to go on with."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from aligntok.distributed import is_first
from aligntok.engine.checkpoints import finished_steps
from aligntok.errors import CheckpointError, ConfigError
from aligntok.io.files import read_json
from aligntok.training.stages import Stage

logger = logging.getLogger("aligntok.training")

#: Settings that may change at any time: what a stage becomes does not depend on them, or not beyond rounding.
FREE = (
    "steps",
    "start",
    "checkpoint",
    "log",
    "validation",
    "hooks",
    "compile",
    "grad_checkpointing",
    "sampling",
    "attention",
)
FREE_BELOW = ("data.workers", "data.timeout", "data.val", "data.num_images", "model.encoder.pretrained")
#: Settings that the saved state depends on.
FIXED = ("schedule", "optimizer.type", "discriminator_optimizer.type", "trains", "lora", "tokenizer")


def report_changes(stage: Stage, finished: bool) -> None:
    """Warn, with each old and new value, when the stage's settings are not those that it was trained with so far.

    Raises ConfigError for a change that a stage which is not `finished` cannot take. Nothing to say before its first
    checkpoint.
    """
    file = stage.description
    if not file.is_file() or not finished_steps(stage.folder):
        return
    cure = "so what the stage was trained with is unknown: restore it, or remove it to go on without the comparison"
    before = read_json(file, CheckpointError, cure)
    changes = changed_settings(before, {"seed": stage.seed, **stage.settings})
    if not changes:
        return
    shown = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())
    fixed = [key for key in changes if key.startswith(FIXED)]
    if fixed and not finished:
        raise ConfigError(
            f"stage '{stage.name}' in {stage.folder} has begun with other settings ({shown}), and {', '.join(fixed)} "
            "cannot change on the way. Set it back, or remove the folder to train the stage anew"
        )
    consequence = "remove its folder to train it again" if finished else "it goes on, and ends as neither would alone"
    if is_first():
        logger.warning(
            "stage '%s' in %s was trained with other settings (%s); %s", stage.name, stage.folder, shown, consequence
        )


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return dotted key -> (old, new) for every setting of a stage that differs and is not free to change."""
    before, after = _flat(old), _flat(json.loads(json.dumps(dict(new), default=str)))
    keys = [key for key in {**before, **after} if key.split(".")[0] in new and not _is_free(key)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _is_free(key: str) -> bool:
    return key.split(".")[0] in FREE or key.startswith(FREE_BELOW)


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, Mapping) or not settings:
        return {prefix.rstrip("."): settings}
    return {k: v for key, value in settings.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
