"""Which arms of a comparison are finished: what is kept of each is found, or taken from its work folder and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from aligntok.data.transforms import open_image
from aligntok.distributed import barrier, is_first, world
from aligntok.errors import DataError, DivergenceError, ImageError
from aligntok.evaluation.comparison.plan import Arm, Comparison
from aligntok.evaluation.comparison.records import Record, machine, made_with, nameless, read_record
from aligntok.evaluation.comparison.running import (
    EVALUATION,
    GENERATOR,
    REAL_IMAGES,
    in_words,
    read_seconds,
    run_arm,
    say,
)
from aligntok.evaluation.latent_analysis import REFERENCE
from aligntok.evaluation.report.collect import Curve, read_history
from aligntok.evaluation.results import read_result
from aligntok.io.files import read_bytes, read_json, writing
from aligntok.io.folders import taking_turns
from aligntok.io.pictures import save_picture
from aligntok.loading import GENERATION

WITHOUT_PLACE = "images"  # numbers that are the same for all
LARGEST = 400  # pixels of a picture that is kept, a side


def finish(
    comparison: Comparison, arms: Sequence[Arm], references: Callable[[], Mapping[str, dict[str, Any]]]
) -> dict[Arm, Record]:
    """Return what is kept of arms, in order; train and measure those of which nothing is. Collective."""
    records = {}
    for arm in arms:
        record = find(comparison, arm, say)
        if record is not None:
            say(f"{arm}: its results are in {comparison.results}, skipped")
        records[arm] = made_in_turn(comparison, arm, references) if record is None else record
    return records


def made_in_turn(comparison: Comparison, arm: Arm, references: Callable[[], Mapping[str, dict[str, Any]]]) -> Record:
    """Train and measure an arm, unless another process has meanwhile, and return what is kept of it. Collective."""
    with in_turn(arm):
        record = find(comparison, arm)
        if record is None:
            say(f"{arm}: {arm.folder}")
            try:
                run_arm(comparison, arm, references())
                record = keep(comparison, arm)
            except DivergenceError as error:
                if arm.number is None:
                    raise
                say(f"{arm} diverged, and is not chosen: {error}")
                record = write(comparison, arm, of_arm(comparison, arm, diverged=True))
                if world()[1] > 1:  # which have let go of one another: the next start goes on after it
                    raise
    return record


@contextmanager
def in_turn(arm: Arm) -> Iterator[None]:
    """Hold an arm, which others may come to: two processes share the work, or one's control needs the other's grid."""

    def wait() -> None:
        say(f"{arm}: another process is at it, which is waited for")

    if not is_first():
        barrier()
        yield
        return
    with writing(arm.folder.parent):
        arm.folder.parent.mkdir(parents=True, exist_ok=True)
    with taking_turns(arm.folder.parent / f".{arm.title}.lock", wait):
        barrier()
        yield


def place_of(comparison: Comparison, arm: Arm | None) -> Path | None:
    """Return the file of what is kept of an arm, or, None, of real images; None where nothing is kept."""
    folder = comparison.results
    return None if folder is None else folder / f"{REAL_IMAGES if arm is None else arm.title}.json"


def find(comparison: Comparison, arm: Arm | None, tell: Callable[[str], None] = lambda _: None) -> Record | None:
    """Return what is kept of an arm, or, None, of real images; None without, or if it is of other settings: told.

    Raises DataError for a file that is damaged.
    """
    path = place_of(comparison, arm)
    if path is None or not path.is_file():
        return None
    record = read_record(path)
    changes = record.made.differences(made_with(comparison, arm))
    if changes:
        tell(f"{path} is of other settings, and made anew ({in_words(changes)})")
    if changes:
        return None
    return record if arm is None else replace(record, name=arm.name)  # it may have been trained under another name


def keep(comparison: Comparison, arm: Arm | None) -> Record:
    """Return what there is of an arm in its work folder, or, None, of real images; write it where such is kept."""
    record = write(comparison, arm, of_real_images(comparison) if arm is None else of_arm(comparison, arm))
    barrier()
    return record


def write(comparison: Comparison, arm: Arm | None, record: Record) -> Record:
    """Write what is kept of an arm, where such is kept, in the first process; return it."""
    path = place_of(comparison, arm)
    if path is not None and is_first():
        if arm is not None and (grid := last_grid(arm)) is not None:
            picture = read_grid(grid)
            picture.thumbnail((LARGEST, LARGEST))
            save_picture(path.with_suffix(".png"), picture)
        record.write(path)
    return record


def of_arm(comparison: Comparison, arm: Arm, diverged: bool = False) -> Record:
    """Return what an arm's tokenizer and generator were measured to be, as far as they were."""
    values: dict[str, float] = {}
    for path in sorted((arm.folder / EVALUATION).glob("*/*.json")):
        found = read_result(path).metrics.items()
        values |= {n: value for n, value in found if n != WITHOUT_PLACE and not n.startswith(f"{REFERENCE}/")}
    return Record(
        name=arm.name,
        seed=arm.seed,
        made=made_with(comparison, arm),
        metrics=values,
        curves={} if diverged else generation_curves(arm),
        diverged=diverged,
        options=nameless(arm.options),
        seconds=read_seconds(arm),
        machine=machine(),
    )


def of_real_images(comparison: Comparison) -> Record:
    """Return what real images were measured to be."""
    found = read_result(comparison.work_dir / REAL_IMAGES / "generation.json")
    made, images = made_with(comparison, None), int(found.settings["images"])
    return Record(REAL_IMAGES, made, dict(found.metrics), images=images, machine=machine())


def generation_curves(arm: Arm) -> dict[str, Curve]:
    """Return what an arm's generator was measured to be over training, by name; nothing without one."""
    if not (arm.folder / GENERATOR).is_dir():
        return {}
    folder = arm.folder / GENERATOR / GENERATION
    history = read_history(folder)
    for fault in history.faults:
        say(f"{arm}: {fault}")
    last, found = read_json(folder / "result.json", DataError, f"remove {folder.parent} to train it anew", _last)
    return {
        name: {**{step: n for step, n in history.measured.get(name, {}).items() if step < last}, last: value}
        for name, value in found.items()
        if not name.endswith(f"/{WITHOUT_PLACE}")
    }


def _last(content: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """Return a generator's last step, and what was measured after it."""
    return int(content["step"]), {str(name): float(value) for name, value in content["metrics"].items()}


def last_grid(arm: Arm) -> Path | None:
    """Return the last grid of samples that an arm's generator drew, if there is one."""
    return max((arm.folder / GENERATOR / GENERATION / "pictures").glob("*.png"), default=None)


def read_grid(path: Path) -> Image.Image:
    """Read a grid of samples. Raises DataError."""
    try:
        return open_image(read_bytes(path))
    except ImageError as error:
        raise DataError(f"{path} cannot be read ({error}); remove it: the one before is shown then") from error


def shown_grid(comparison: Comparison, arm: Arm) -> Path | None:
    """Return the grid of samples to show of an arm: the one that is kept, or its generator's last."""
    kept = place_of(comparison, arm)
    picture = None if kept is None else kept.with_suffix(".png")
    return picture if picture is not None and picture.is_file() else last_grid(arm)
