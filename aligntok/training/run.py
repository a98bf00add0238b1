"""The run: stages in order, finished ones skipped, an unfinished one gone on with, a tokenizer at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from aligntok.data.listing import report_changes
from aligntok.data.loader import contents_of
from aligntok.device import device, multiplying, repeatable
from aligntok.distributed import agree, barrier, is_first, must_agree, world
from aligntok.distributed.job import job, stop_if_preempted
from aligntok.distributed.parallel import check_group
from aligntok.engine.checkpoints import finished_steps, list_checkpoints, share_hashing
from aligntok.engine.log import logging_the_end
from aligntok.engine.trackers import check_backends
from aligntok.errors import CheckpointError, ConfigError, Preempted, WeightsError, unknown
from aligntok.io.console import beside, print_line, say
from aligntok.io.folders import check_links, lock_folder, remove_leftovers
from aligntok.registry import loading_line
from aligntok.training.alignment import expand_stages
from aligntok.training.builder import train
from aligntok.training.config import dotted_models, load_config, report_config_diff, shared_settings
from aligntok.training.generation import expand_generation
from aligntok.training.memory import explain_full_memory, print_memory, stage_memory
from aligntok.training.plan import StagePlan, check_before_training, check_weights, plan_stage, print_plan
from aligntok.training.rehearsal import check_repeatable
from aligntok.training.request import Hardware, TrainRequest
from aligntok.training.run_info import print_summary, read_result, run_info_of, write_run_info
from aligntok.training.stages import Stage

logger = logging.getLogger("aligntok.training")


def read_request(asked: TrainRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config that is to be trained, and the run_info that `run` notes of it. Raises ConfigError."""
    return load_config(asked.config, asked.options), run_info_of(asked.config, asked.options)


def run(
    config: Mapping[str, Any],
    only_stage: str | None = None,
    dry_run: bool = False,
    run_info: Mapping[str, Any] | None = None,
    hardware: Hardware | None = None,
) -> Path | None:
    """Train the stages of a config, then its generator, and return the folder of what is finished.

    Started again, it skips what is finished and goes on with what is not. `only_stage` runs one stage by name, or
    "generation"; `dry_run` prints the plan, on the meta device, and stops: it needs no weights,
    and of the data, where the config says where they are, the listing. With `hardware` it is planned for that, and what
    a GPU holds is told, too.
    `run_info`, see :func:`~aligntok.training.run_info.run_info_of`, is noted in the work folder when anything is
    trained. Returns the saved generator's folder, of a config without one the tokenizer's, or None when that is not
    finished. Raises AlignTokError's kinds before the first step wherever they can be known.
    """
    if dry_run:
        look_ahead(config, only_stage, hardware)
        return None
    stages, chosen = _chosen(config, only_stage)
    deterministic = config.get("deterministic", False)
    folder: Path | None = None
    with logging_the_end(), job(config["process_timeout"]) as launcher, repeatable(deterministic):
        check_links(config["work_dir"], *(stage.folder for stage in stages))
        for stage in chosen:
            check_group(stage.settings.parallel, world()[1], stage.where)
            check_weights(stage)
            stage.check_beforehand(stages[: stages.index(stage)])
        stages = [stage.completed() if stage in chosen else stage for stage in stages]
        chosen = [stage for stage in stages if only_stage in (None, stage.name)]
        _say_what_loads(config)
        for i, (_, group) in enumerate(groupby(stages, lambda stage: stage.waits)):
            together = [*group]
            if i and not any(stage in chosen for stage in together):
                break
            if i and folder is None and any(stage.needs_stages for stage in together):
                raise ConfigError("the generator's tokenizer is not finished; train all stages first, without --stage")
            folder = _train(config, stages, together, chosen, launcher, run_info)
    return folder


def _chosen(config: Mapping[str, Any], only: str | None) -> tuple[list[Stage], list[Stage]]:
    """Return all stages of a config, and those that are asked for. Raises ConfigError where there is none."""
    stages = expand(config)
    chosen = [stage for stage in stages if only in (None, stage.name)]
    if not chosen:
        raise ConfigError(unknown("stage", only, [stage.name for stage in stages]))
    return stages, chosen


def look_ahead(
    config: Mapping[str, Any], only_stage: str | None = None, hardware: Hardware | None = None
) -> list[StagePlan]:
    """Print, and return, what the chosen of the stages are going to do, and with `hardware` what they take of it."""
    stages, chosen = _chosen(config, only_stage)
    plans = _tell(stages, chosen, hardware)
    for stage in chosen if config.get("deterministic", False) else ():
        try:
            check_repeatable(stage.completed())
        except ConfigError as error:
            print_line(f"refused where there is a GPU: {error}")
    return plans


def _tell(stages: Sequence[Stage], chosen: Sequence[Stage], hardware: Hardware | None) -> list[StagePlan]:
    processes = world()[1]
    if hardware is not None:
        processes, parallel = hardware.processes, hardware.parallel
        if parallel is not None:
            chosen = [replace(stage, settings=replace(stage.settings, parallel=parallel)) for stage in chosen]
    plans = [_plan_beforehand(stage, processes) for stage in chosen]
    print_plan(plans)
    if hardware is not None:
        held = {stage.name: stage_memory(stage.completed(), processes) for stage in chosen}
        print_memory(held, hardware.gpu_memory)
    names = [stage.name for stage in stages]
    for stage in chosen:
        stage.check_follows([*stages[: names.index(stage.name)]])
        _tell_missing(stage)
    return plans


def _plan_beforehand(stage: Stage, processes: int) -> StagePlan:
    """Plan a stage by what is there before anything is trained."""
    stage = stage.completed()
    plan, data = plan_stage(stage, processes), stage.look()
    return plan if data is None else replace(plan, epochs=plan.images_seen / len(data))


def _tell_missing(stage: Stage) -> None:
    for check in (lambda: check_backends(stage.settings.log.backends), lambda: check_weights(stage)):
        try:
            check()
        except (ConfigError, WeightsError) as error:
            print_line(f"still missing, and refused by the run: {error}")


def expand(config: Mapping[str, Any]) -> list[Stage]:
    """Return everything that a checked config trains, in order, complete. Raises ConfigError for what cannot work."""
    generator = expand_generation(config)
    return [*expand_stages(config), *([generator] if generator else [])]


def _say_what_loads(config: Mapping[str, Any]) -> None:
    """Say which line loads what is exported, of a config with components that no registry has."""
    names = dotted_models(config)
    if names:
        has_generator = "generator" in (config["generation"] if config["stages"] else config)
        loaders = ["load_tokenizer"] * bool(config["stages"]) + ["load_latent_diffusion"] * has_generator
        lines = " and ".join(loading_line(loader, names) for loader in loaders)
        _say(
            f"named by import path: {', '.join(names)}; what this run exports loads only with {lines}, or once a "
            "plugin registers the name"
        )


def _train(
    config: Mapping[str, Any],
    stages: Sequence[Stage],
    group: Sequence[Stage],
    chosen: Sequence[Stage],
    launcher: str,
    run_info: Mapping[str, Any] | None,
) -> Path | None:
    """Train those of a group of the stages that are chosen and left, and print what all that are finished reached.

    Returns what the last one exports, once it is finished.
    """
    wanted = [stage for stage in group if stage in chosen]
    left = [stage for stage in wanted if _is_left(stage)]
    for stage in left:
        check_backends(stage.settings.log.backends)
    _tell_followers(stages, left)
    data = {stage.name: stage.build_data() for stage in wanted} if left else {}
    for stage in left:
        given = data[stage.name]
        contents = [contents_of(each) for each in (given.train, given.val) if each is not None]
        must_agree({"settings": shared_settings(stage), "contents": contents}, f"other data for stage '{stage.name}'")
        if is_first() and finished_steps(stage.folder):
            report_changes(stage.folder, stage.name, given.train, stage.is_of_classes(given))
    plans = [plan_stage(stage, world()[1], len(data[stage.name].train)) for stage in wanted if left]
    if is_first() and plans:
        print_plan(plans, beside())
    check_before_training(left, plans)
    if torch.are_deterministic_algorithms_enabled() and device().type == "cuda":
        for stage in left:
            check_repeatable(stage)
    with lock_folder(config["work_dir"], wanted=is_first()):
        if is_first():
            remove_leftovers(config["work_dir"])
        if left and run_info is not None and is_first():
            write_run_info(config["work_dir"], run_info)
        for stage in left:
            stop_if_preempted(
                Preempted(f"stopped by SIGTERM before stage '{stage.name}'; the same command goes on with it")
            )
            with multiplying(stage.settings.precision):
                try:
                    train(stage, data[stage.name], launcher)
                except (RuntimeError, MemoryError) as error:
                    explain_full_memory(stage, error)
                    raise
        if is_first():
            print_summary([stage for stage in group if stage.results_title])
        last = group[-1]
        if finished_steps(last.folder) < last.settings.steps:
            return None
        folder = last.export() if is_first() else None
        barrier()
        return folder or last.folder


def _is_left(stage: Stage) -> bool:
    """Tell whether a stage has steps left, or its result to be measured.

    Reports what differs from the settings it was trained with so far.
    """
    result, steps = stage.folder / "result.json", stage.settings.steps
    share_hashing(stage.folder)
    finished = finished_steps(stage.folder) >= steps
    if stage.validates:
        finished = finished and result.is_file() and read_result(result)["step"] >= steps
    if not agree(finished):
        raise CheckpointError(f"not all processes find stage '{stage.name}' in {stage.folder} alike; start again")
    report_config_diff(stage, finished)
    if finished:
        _say(f"{stage.name}: finished already, skipped")
    return not finished


def _tell_followers(stages: Sequence[Stage], left: Sequence[Stage]) -> None:
    """Warn where stages have begun from what is trained only now, anew or further: they stay what they are."""
    changing = {stage.folder for stage in left if finished_steps(stage.folder) < stage.settings.steps}
    following: dict[Path, None] = {}
    for i, stage in enumerate(stages):
        if list_checkpoints(stage.folder):
            start = stages[i - 1].folder if stage.needs_stages else stage.start_folder
            if start in {*changing, *following}:
                following[stage.folder] = None
    if following and is_first():
        logger.warning(
            "what is trained now others have begun from, as it was before, and they stay as they are: %s; to train "
            "them on it, remove their folders, too",
            ", ".join(map(str, following)),
        )


def _say(text: str) -> None:
    if is_first():
        say(text)
