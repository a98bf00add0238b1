"""What a stage takes of a GPU, and of the wire, found out without one: everything is counted where it is made.

Weights, gradients, optimiser states and averages are those of the model on the meta device; what a step holds besides
is what a rehearsal of one holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from aligntok.data.sampler import per_process_batch
from aligntok.device import is_out_of_memory, memory_bytes
from aligntok.distributed import world
from aligntok.distributed.parallel import Unit, group_of, traffic
from aligntok.engine.ema import WeightAverages
from aligntok.engine.optim import optimizer_bytes, side_of
from aligntok.errors import AlignTokError, ConfigError, first_line
from aligntok.io.console import print_line, print_table
from aligntok.training.rehearsal import Course, watch
from aligntok.training.stages import Stage

USABLE = 0.95  # of a card's memory: the rest is CUDA's context, the kernels' own space, and gaps between tensors
GIB = 2**30


@dataclass(frozen=True)
class StageMemory:
    """What a process of a stage holds at once, in bytes, with micro-batches of `images`.

    frozen: weights that are not trained, by part. exchange: what exchanging takes, whole blocks of shared weights or
    buffers of gradients. sent: what a process sends in a step. waits: whether a step has micro-batches whose gradients
    wait for others. course: None where a step could not be rehearsed, of which `unknown` has the reason. uncounted: why
    the weights beside the model's parts are not among the frozen ones.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    frozen: Mapping[str, int]
    exchange: int
    sent: float
    images: int
    waits: bool = False
    course: Course | None = None
    unknown: str = ""
    uncounted: str = ""

    @property
    def states(self) -> int:
        """Everything but what grows with the micro-batch."""
        held = self.weights + self.gradients + self.optimizer + self.averages
        return held + sum(self.frozen.values()) + self.exchange

    @property
    def activations(self) -> int:
        """The most that a micro-batch takes at once besides; 0 where it is unknown."""
        return self.course.peak(self.images, self.gradients, self.waits) if self.course else 0

    def largest(self, card: float) -> int:
        """Return the largest micro-batch that fits a card of so many bytes; 0 for none, or where it is unknown."""
        return self.course.largest(USABLE * card - self.states, self.gradients, self.waits) if self.course else 0


def stage_memory(stage: Stage, processes: int) -> StageMemory:
    """Find out what one of so many processes, the fullest, holds in a step of a stage in which all losses are active.

    Raises ConfigError for a batch that cannot be shared out.
    """
    settings, model = stage.settings, stage.build_model()
    micro_batches = settings.gradient_accumulation_steps
    images = per_process_batch(settings.global_batch_size, processes, micro_batches)
    units = model.units()
    share = _Share(units, group_of(settings.parallel, processes))
    exchanged = traffic(units, settings.parallel, processes, micro_batches)
    trained = [p for p in model.parameters() if p.requires_grad]
    states = StageMemory(
        weights=sum(map(share.bytes, trained)) + _buffers(model),
        # Gradients that are not exchanged yet are whole: FSDP2 shares them out in the exchange.
        gradients=sum(p.nbytes if micro_batches > 1 else share.bytes(p) for p in trained),
        optimizer=sum(
            optimizer_bytes(stage.optimizers[side_of(name)], (share.shape(p) for p in _trained(part)))
            for name, part in model.trained_parts().items()
        ),
        averages=_averages(model, settings.ema, share),
        frozen=_frozen(model, share),
        exchange=exchanged.space,
        sent=sum(each.sent for each in exchanged.exchanges),
        images=images,
        waits=micro_batches > 1,
    )
    try:
        states, uncounted = replace(states, frozen={**states.frozen, **model.bytes_beside()}), ""
    except AlignTokError as error:  # a dry run needs no weights
        uncounted = first_line(error)
    course, unknown = watch(stage, model)  # the model is of no use afterwards
    return replace(states, course=course, unknown=unknown, uncounted=uncounted)


def print_memory(planned: Mapping[str, StageMemory], gigabytes: float) -> None:
    """Print what each stage holds on a GPU, a column a stage, and the largest micro-batch for a card of so many GiB."""
    frozen = dict.fromkeys(part for each in planned.values() for part in each.frozen)
    facts: list[tuple[str, Callable[[StageMemory], Any]]] = [
        ("weights that are trained", lambda m: m.weights),
        ("gradients", lambda m: m.gradients),
        ("optimiser", lambda m: m.optimizer),
        ("averages", lambda m: m.averages),
        *((f"frozen: {part}", lambda m, part=part: m.frozen.get(part, 0)) for part in frozen),
        ("for exchanges", lambda m: m.exchange),
        ("a micro-batch", lambda m: m.activations if m.course else None),
    ]
    rows: list[list[str] | None] = [[name, *(_gib(of(each)) for each in planned.values())] for name, of in facts]
    card = gigabytes * GIB
    found = {name: each.largest(card) for name, each in planned.items()}
    rows += [
        None,
        [
            "together",
            *(_gib(each.states + each.activations if each.course else None) for each in planned.values()),
        ],
        ["images of a micro-batch", *(str(each.images) for each in planned.values())],
        [
            f"largest for {gigabytes:g} GiB",
            *(str(found[name]) if each.course else "-" for name, each in planned.items()),
        ],
        ["sent a step, GB", *(f"{each.sent / 1e9:.3f}" for each in planned.values())],
    ]
    print_table("What a GPU holds, GiB", ["", *planned], rows)
    for name, each in planned.items():
        if each.uncounted:
            print_line(f"{name}: what encodes the prompts is not counted ({each.uncounted})")
        if line := _remark(name, each, found[name], gigabytes):
            print_line(line)


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / GIB:.3f}"


def _remark(name: str, memory: StageMemory, largest: int, gigabytes: float) -> str:
    """Return what a reader has to know of a stage that does not fit, or could not be looked at."""
    if memory.course is None:
        return f"{name}: what a micro-batch takes is unknown: a component cannot run without values ({memory.unknown})"
    if largest >= memory.images:
        return ""
    asked = f"{name}: micro-batches of {memory.images} do not fit into {gigabytes:g} GiB, of which {USABLE:.0%} count; "
    if not largest:
        return asked + "not even one image does: parallel='shard', more processes or grad_checkpointing=True"
    times = next(n for n in range(1, memory.images + 1) if memory.images % n == 0 and memory.images // n <= largest)
    return (
        asked + f"the largest that does is {largest}: gradient_accumulation_steps={times} times as many, or more GPUs"
    )


def explain_full_memory(stage: Stage, error: BaseException) -> None:
    """Raise ConfigError for an error in a stage's training that is a device's full memory; others are left alone.

    It names the largest micro-batch that would fit, planned as :func:`stage_memory` does, for this device.
    """
    if not is_out_of_memory(error):
        return
    try:
        planned, size = stage_memory(stage, world()[1]), memory_bytes()
        said = _remark(stage.where, planned, planned.largest(size), round(size / GIB, 1))
        images = f"micro-batches of {planned.images}"
    except (AlignTokError, RuntimeError, MemoryError):  # what explains a failure is not to hide it
        said, images = "", "a micro-batch"
    cure = "gradient_accumulation_steps=2 times as many, grad_checkpointing=True, or a smaller global_batch_size"
    said = said or f"{stage.where}: {images} should fit, but do not beside what else there is; {cure}"
    raise ConfigError(f"the device's memory is full ({first_line(error)}). {said}") from error


class _Share:
    """What the fullest process of a group has of a weight: FSDP2 cuts its rows, and whole is what no unit has."""

    def __init__(self, units: Iterable[Unit], group: int) -> None:
        self.group = group
        self._shared = {id(p) for unit in units for p in unit.part.parameters()}

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        if self.group == 1 or id(tensor) not in self._shared:
            return tuple(tensor.shape)
        return (-(-tensor.shape[0] // self.group), *tensor.shape[1:])

    def bytes(self, tensor: Tensor) -> int:
        return math.prod(self.shape(tensor)) * tensor.element_size()


def _trained(part: nn.Module) -> list[nn.Parameter]:
    return [p for p in part.parameters() if p.requires_grad]


def _averages(model: Any, ema: Any, share: _Share) -> int:
    if ema is None:
        return 0
    parts, averages = model.averaged_parts(), WeightAverages(model.averaged_parts(), ema.sigma_rel, ema.decays)
    total = 0
    for which in averages.kept:
        sources = {}
        for part, state in averages.state(which).items():
            own = dict(parts[part].named_parameters(remove_duplicate=False))
            sources.update({id(each): own.get(name, each) for name, each in state.items()})
        total += sum(map(share.bytes, sources.values()))
    return total


def _buffers(model: Any) -> int:
    """Return the bytes of the buffers of what is trained, and of a copy of all, put back where a step is left out."""
    trained = {id(t): t for part in model.trained_parts().values() for t in part.buffers()}
    return sum(each.nbytes for each in (*trained.values(), *model.buffers()))


def _frozen(model: Any, share: _Share) -> dict[str, int]:
    """Return the bytes of what a step does not change, by part."""
    seen = {id(t) for part in model.trained_parts().values() for t in (*_trained(part), *part.buffers())}
    found: dict[str, int] = {}
    for name, part in model.parts().items():
        own = {id(t): t for t in (*part.parameters(), *part.buffers()) if id(t) not in seen}
        seen |= own.keys()
        if own:
            found[name] = sum(map(share.bytes, own.values()))
    return found
