"""What more GPUs are worth: arithmetic, from a step of one GPU, the bytes that it has to send, and bandwidths."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from aligntok.data.sampler import per_process_batch
from aligntok.device import device as this_device
from aligntok.device import multiplying, repeatable
from aligntok.distributed.parallel import Unit, group_of, traffic
from aligntok.errors import ConfigError, unknown
from aligntok.evaluation.cost.count import CountedStage
from aligntok.evaluation.cost.steps import measure_step
from aligntok.evaluation.cost_settings import CostSettings, ScalingRequest
from aligntok.io.console import print_line, print_table, say
from aligntok.ops.attention import force_backend
from aligntok.training.config import load_config
from aligntok.training.plan import make_plan
from aligntok.training.run import expand
from aligntok.training.stages import Stage

BACKWARD = 2 / 3  # of a step: about twice a forward pass


class Scaled(NamedTuple):
    """A step of so many GPUs, each with so many images: seconds on the wire, and of the step."""

    gpus: int
    images: int
    sent: float
    exchange: float
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Of all GPUs together."""
        return self.gpus * self.images / self.seconds


def scale(units: Sequence[Unit], one: Scaled, gpus: int, images: int, asked: ScalingRequest, micro: int = 1) -> Scaled:
    """Return the step of `gpus` GPUs with `images` images each, from that of `one`.

    What it computes takes as long as its images do on one GPU. Exchanges follow one another, each at the bandwidth of
    the slowest link on its ring; `overlap` of the backward pass of the last of `micro` micro-batches hides them.
    """
    computing = one.seconds * images / one.images
    found = traffic(units, asked.parallel or "replicate", gpus, micro).exchanges
    links = [asked.node_bandwidth if e.reach <= asked.gpus_per_node else asked.network_bandwidth for e in found]
    exchange = sum(each.sent / (link * 1e9) for each, link in zip(found, links, strict=True))
    hidden = min(exchange, asked.overlap * BACKWARD * computing / micro)
    return Scaled(gpus, images, sum(each.sent for each in found), exchange, computing + exchange - hidden)


def cost_scaling(asked: ScalingRequest, console: Console | None = None) -> dict[str, list[Scaled]]:
    """Print, and return by stage, what a step of 1, 2, 4, ... GPUs takes. Raises ConfigError before any measurement."""
    console = console or Console()
    config = load_config(Path(asked.config), asked.cfg_options)
    stages = expand(config)
    chosen = [stage for stage in stages if asked.stage in (None, stage.name)]
    if not chosen:
        raise ConfigError(unknown("stage", asked.stage, [stage.name for stage in stages]))
    if asked.step_seconds and len(asked.step_seconds) != len(chosen):
        names = ", ".join(stage.name for stage in chosen)
        raise ConfigError(f"--step-seconds has {len(asked.step_seconds)} numbers; give one for each of {names}")
    each = [_images(stage, asked) for stage in chosen]
    found: dict[str, list[Scaled]] = {}
    for number, (stage, images) in enumerate(zip(chosen, each, strict=True)):
        with repeatable(config["deterministic"]):
            seconds = asked.step_seconds[number] if asked.step_seconds else _measured(stage, images)
        one = Scaled(1, images, 0.0, 0.0, seconds)
        found[stage.name] = _rows(stage, one, asked)
        _print(stage, found[stage.name], one, console)
    print_line(
        f"Arithmetic, nothing of it measured{'' if asked.step_seconds else ' but the step of one GPU'}: "
        f"{asked.node_bandwidth:g} GB/s a GPU within a node of {asked.gpus_per_node}, {asked.network_bandwidth:g} GB/s "
        f"between nodes; {asked.overlap:.0%} of the backward pass hides exchanges.",
        console,
    )
    return found


def _images(stage: Stage, asked: ScalingRequest) -> int:
    """Return the images of a GPU in a step: those asked for, or its share of the config's batch on one node."""
    settings = stage.settings
    micro = settings.gradient_accumulation_steps
    return asked.images or per_process_batch(settings.global_batch_size, asked.gpus_per_node, micro) * micro


def _rows(stage: Stage, one: Scaled, asked: ScalingRequest) -> list[Scaled]:
    """Return a row for each number of GPUs that can share out the batch, and the model as it says."""
    parallel, batch = asked.parallel or stage.settings.parallel, stage.settings.global_batch_size
    units, micro = stage.build_model().units(), stage.settings.gradient_accumulation_steps
    rows = []
    for gpus in asked.gpus:
        uneven = asked.fixed_batch and batch % (gpus * micro)
        if not uneven and gpus % group_of(parallel, gpus) == 0:
            images = batch // gpus if asked.fixed_batch else one.images
            rows.append(scale(units, one, gpus, images, replace(asked, parallel=parallel), micro))
    return rows


def _measured(stage: Stage, images: int) -> float:
    """Return the seconds of a step of one GPU on this machine."""
    say(f"measuring a training step of {stage.name}")
    alone = replace(stage, settings=replace(stage.settings, global_batch_size=images))
    counted = CountedStage(alone, make_plan(stage, stage.build_model(), 1), 0)  # its batch need not go in groups
    with multiplying(stage.settings.precision), tempfile.TemporaryDirectory() as folder:
        try:
            row, _ = measure_step(stage.name, counted, CostSettings(), this_device(), Path(folder))
        finally:
            force_backend(None)
    if row["left_out"]:
        raise ConfigError(
            f"a step of {stage.name} with {images} images cannot be measured here ({row['left_out']}); give --images a "
            "smaller number, or --step-seconds those that a GPU took"
        )
    return float(row["s_a_step"])


def _print(stage: Stage, rows: Sequence[Scaled], one: Scaled, console: Console) -> None:
    batch = stage.settings.global_batch_size
    columns: list[tuple[str, Any]] = [
        ("GPUs", lambda r: str(r.gpus)),
        ("images a step", lambda r: f"{r.gpus * r.images:,}{' *' if r.gpus * r.images == batch else ''}"),
        ("GB sent a GPU", lambda r: f"{r.sent / 1e9:.2f}"),
        ("s of exchange", lambda r: f"{r.exchange:.4f}"),
        ("s a step", lambda r: f"{r.seconds:.4f}"),
        ("images/s", lambda r: f"{r.images_per_second:,.1f}"),
        ("efficiency", lambda r: f"{r.images_per_second / r.gpus / one.images_per_second:.0%}"),
    ]
    cells = [[of(row) for _, of in columns] for row in rows]
    print_table(f"{stage.name}, computed (* the config's batch)", [name for name, _ in columns], cells, console=console)
