"""Schedules of the learning rate: mmengine's, counted in steps; checked before the first one, and gone on with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from mmengine.registry import PARAM_SCHEDULERS

from aligntok.annotations import check_keywords
from aligntok.engine.mmengine import _ParamScheduler
from aligntok.errors import ConfigError, first_line, unknown
from aligntok.io.values import count
from aligntok.registry import find_class

logger = logging.getLogger("aligntok.engine")
#: Of a scheduler's state: what moves as it goes. The rest is its shape.
_MOVING = ("last_step", "_global_step", "_last_value", "base_values")
_TRIED = 20_000  # steps whose rates are looked at beforehand: a twentieth of a second
_LAST = 2**31 - 1  # step that there can be
_HIGHEST = 1e3  # of a rate, in units of the optimiser's


def complete_schedule(schedule: Iterable[Mapping[str, Any]] | None, end: int) -> list[dict[str, Any]]:
    """Return a config's schedulers, counted in steps, with `end` for those that name none."""
    return [{"by_epoch": False, "end": end, **one} for one in schedule or []]


def end_of_schedule(schedule: Iterable[Mapping[str, Any]] | None, end: int) -> int | None:
    """Return `end`, at which schedulers without an end of their own end, if earlier rates depend on it, or None.

    Those of a cosine do, those of a decay by the step do not.
    """
    for one in schedule or []:
        ends = (one.get("begin", 0) + length for length in (100, 101)) if "end" not in one else ()
        shapes = [_shape(_build({**one, "end": last}, "schedule").state_dict()) for last in ends]
        if any({**shape, "end": 0} != {**shapes[0], "end": 0} for shape in shapes):
            return end
    return None


def check_schedule(schedule: Sequence[Any] | None, where: str, steps: int, end: int | None = None) -> None:
    """Raise ConfigError unless each ``dict(type=..., ...)`` is a scheduler of mmengine that can move the learning rate
    of a stage of `steps` steps as it says. `end` is for those without one; None: the last step.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    for one in schedule or []:
        _check_counted(one, where)
    complete = complete_schedule(schedule, end or steps)
    built = [_build(one, where, optimizer) for one in complete]
    for one, given in zip(complete, schedule or [], strict=True):
        _check_reached(one, where, steps, ends_by_itself="end" in given)
    for step in range(min(steps, _TRIED) if built else 0):
        rate = optimizer.param_groups[0]["lr"]
        if not 0 <= rate < _HIGHEST:  # NaN neither
            raise ConfigError(f"{where}, schedule: it takes the learning rate {rate:.4g}-fold at step {step}")
        try:
            _step(built)
        except (ArithmeticError, ValueError, TypeError) as error:
            raise ConfigError(f"{where}, schedule: it has no rate at step {step + 1} ({first_line(error)})") from error


def _check_counted(one: Any, where: str) -> None:
    """Raise ConfigError for what is no scheduler's dict, or counts in epochs: a stage is one endless epoch."""
    if not isinstance(one, Mapping) or not isinstance(one.get("type"), str):
        raise ConfigError(f"{where}: schedule holds {one!r}; each must be dict(type='LinearLR', ...) or the like")
    for key in ("by_epoch", "convert_to_iter_based"):
        if one.get(key, False) is not False:
            raise ConfigError(
                f"{where}, schedule: {key}={one[key]!r} of {one['type']}, but schedules are counted in steps, and an "
                f"epoch never ends; leave {key} out and give begin, end and the like in steps"
            )


def _build(one: Mapping[str, Any], where: str, optimizer: Any = None) -> Any:
    """Build a scheduler. Raises ConfigError for what is none, or cannot go on from a checkpoint."""
    kind = find_class(PARAM_SCHEDULERS, one["type"], "mmengine.optim._ParamScheduler", f"{where}, schedule:")
    options = {key: value for key, value in one.items() if key not in ("type", "convert_to_iter_based")}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0) if optimizer is None else optimizer
    try:
        if kind is None:
            raise KeyError(unknown("scheduler", one["type"], sorted(PARAM_SCHEDULERS.module_dict)))
        bases = kind.__mro__ if isinstance(kind, type) and issubclass(kind, _ParamScheduler) else ()
        for named in [base for base in bases if base.__name__.endswith("ParamScheduler")][:1]:  # LinearLR takes *args
            check_keywords(named, options, who=f"{where}, schedule: {one['type']}")
        built = PARAM_SCHEDULERS.build({"by_epoch": False, **options, "type": kind, "optimizer": optimizer})
    except ConfigError:
        raise
    except Exception as error:  # whatever mmengine, or a stranger's scheduler, says of its keywords
        raise ConfigError(
            f"{where}, schedule: {dict(one)} is no scheduler of mmengine ({first_line(error)}); each is "
            "dict(type='LinearLR', start_factor=0.1, begin=0, end=1000) or the like, counted in steps"
        ) from error
    if built.param_name != "lr" or any(map(callable, built.state_dict().values())):
        raise ConfigError(
            f"{where}, schedule: {one['type']} cannot be saved with a checkpoint; take one of the learning rate "
            "whose state is plain numbers, such as LinearLR, CosineAnnealingLR, MultiStepLR"
        )
    return built


def _check_reached(one: Mapping[str, Any], where: str, steps: int, ends_by_itself: bool) -> None:
    """Raise ConfigError for steps that a scheduler names and that never come before its own end.

    Those that the stage is too short for are told: a trial of a few steps has the schedule of the whole.
    """
    begin, periods = one.get("begin", 0), one.get("periods", [])
    if one["end"] > _LAST:
        raise ConfigError(f"{where}, schedule: end={one['end']} of {one['type']}; it must be at most {_LAST}")
    named = {"begin": [begin], "milestones": one.get("milestones", [])}
    named["periods"] = [0, *accumulate(periods)][:-1] if min(periods, default=1) > 0 else [-1]
    named["step_size"] = [one["step_size"]] if "step_size" in one else []
    for key, counted in named.items():
        first = 0 if key in ("begin", "periods") else 1
        last = max(counted, default=first) + (0 if key == "begin" else begin)
        stop = min(steps, one["end"])
        if not all(first <= step for step in counted) or (ends_by_itself and last >= one["end"]):  # NaN neither
            raise ConfigError(
                f"{where}, schedule: {key}={one.get(key)} of {one['type']}, which begins at step {begin} and goes to "
                f"step {stop}: not all of that comes; give steps in between"
            )
        if last >= stop:
            logger.warning(
                "%s, schedule: %s=%s of %s, which begins at step %d and goes to step %d: not all of that comes",
                *(where, key, one.get(key), one["type"], begin, stop),
            )


def _shape(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in _MOVING}


def _step(schedulers: Iterable[Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `scheduler.step")  # no optimiser steps here
        for scheduler in schedulers:
            scheduler.step()


def go_on_schedules(
    schedulers: Sequence[Any], states: Sequence[Mapping[str, Any]], step: int, load: Callable[[], None]
) -> None:
    """Bring fresh schedulers, and the rates of their optimiser, to where they were after `step` steps.

    `load` loads the optimiser's own state. Where a shape is no longer that of its state, as its end is another, all
    walk anew to that step: the rates that follow are those of a run that was of this shape from the start.
    """
    if all(_shape(each.state_dict()) == _shape(state) for each, state in zip(schedulers, states, strict=True)):
        load()
        for scheduler, state in zip(schedulers, states, strict=True):
            count(state["last_step"], least=-1), count(state["_global_step"])
            base_values = scheduler.base_values  # the config's learning rate, which may be another than it was
            scheduler.load_state_dict(state)
            scheduler.base_values = base_values
        return
    for _ in range(step):
        _step(schedulers)
    with keeping_rates(schedulers[0].optimizer):
        load()


@contextmanager
def keeping_rates(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """Let optimisers have the learning rates, after the states that are loaded inside, that they have now."""
    rates = [[group["lr"] for group in each.param_groups] for each in optimizers]
    yield
    for each, own in zip(optimizers, rates, strict=True):
        for group, rate in zip(each.param_groups, own, strict=True):
            group["lr"] = rate
