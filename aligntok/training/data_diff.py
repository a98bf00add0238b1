"""What a stage was trained on so far, held against what it is given now."""

from __future__ import annotations

import logging
from typing import Any

from aligntok.data.listing import Listing
from aligntok.distributed import is_first
from aligntok.engine.checkpoints import finished_steps
from aligntok.errors import ConfigError
from aligntok.training.stages import Stage, StageData

logger = logging.getLogger("aligntok.training")


def report_data_diff(stage: Stage, data: StageData) -> None:
    """Warn, with numbers, when a stage that has begun is given other data than it was trained on so far.

    Raises ConfigError for other classes where the model is told them. The first process looks; nothing is said of data
    sets that cannot tell what they are made of, and of stages of an earlier version.
    """
    now = getattr(data.train, "listing", None) if is_first() and finished_steps(stage.folder) else None
    before = Listing.read(stage.folder) if now is not None else None
    if now is None or before is None:
        return
    changes = before.changes(now, getattr(data.train, "source", None))
    classes = before.class_names != now.class_names or bool(changes and changes.relabelled)
    if classes and getattr(data.made_with, "conditional", False):
        raise ConfigError(
            f"stage '{stage.name}' in {stage.folder} was trained with other classes ({_told(before, now, changes)}), "
            "and its generator knows them by number; put the data back, or remove the folder to train the stage anew"
        )
    if changes or classes:
        logger.warning(
            "stage '%s' in %s was trained on other %s so far (%s); it goes on with those that are there now",
            *(stage.name, stage.folder, now.unit, _told(before, now, changes)),
        )


def _told(before: Listing, now: Listing, changes: Any) -> str:
    names = [f"{len(each.class_names)} classes" for each in (before, now)]
    gone = [name for name in before.class_names if name not in now.class_names]
    new = [name for name in now.class_names if name not in before.class_names]
    parts = [str(changes)] if changes else []
    parts += [f"{names[0]}, now {names[1]}"] if names[0] != names[1] else []
    parts += [f"classes {what}: {', '.join(some[:4])}" for what, some in (("gone", gone), ("new", new)) if some]
    return "; ".join(parts) or "the order of its classes"


def note_data(stage: Stage, data: StageData) -> dict[str, Any]:
    """Keep what a stage is trained on, in its folder, and return what its description says of it."""
    listing = getattr(data.train, "listing", None)
    if listing is None:
        return {}
    listing.write(stage.folder)
    return {"source": listing.described()}
