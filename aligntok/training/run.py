"""The run: stages in order, finished ones skipped, an unfinished one gone on with, a tokenizer at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligntok.device import multiplying
from aligntok.distributed import agree, barrier, is_first, world
from aligntok.distributed.job import job, stop_if_preempted
from aligntok.engine.checkpoints import finished_steps
from aligntok.engine.runner import logging_the_end
from aligntok.errors import CheckpointError, ConfigError, Preempted, unknown
from aligntok.io.files import lock_folder
from aligntok.loading import load_stage_tokenizer
from aligntok.registry import import_components, loading_line
from aligntok.training.alignment import build_datasets, run_stage
from aligntok.training.config import report_config_diff
from aligntok.training.generation import check_chain, save_result, train_generator
from aligntok.training.generation.plan import plan_generation
from aligntok.training.generation.settings import Generation, dotted_models, expand_generation
from aligntok.training.generation.validation import check_validation
from aligntok.training.plan import StagePlan, check_before_training, plan_stage, print_plan
from aligntok.training.run_info import print_summary, read_result, write_run_info
from aligntok.training.stages import Stage, expand_stages


def run(
    config: Mapping[str, Any],
    only_stage: str | None = None,
    dry_run: bool = False,
    run_info: Mapping[str, Any] | None = None,
) -> Path | None:
    """Train the stages of a config, then its generator, and return the folder of what is finished.

    Started again, it skips what is finished and goes on with what is not. `only_stage` runs one stage by name, or
    "generation"; `dry_run` prints the plan, on the meta device, and stops: it needs neither data nor weights.
    `run_info`, see :func:`aligntok.training.run_info.run_info_of`, is noted in the work folder when anything is trained. Returns
    the saved generator's folder, of a config without one the tokenizer's, or None when that is not finished. Raises
    AlignTokError's kinds before the first step wherever they can be known.
    """
    stages, generation = expand_stages(config), expand_generation(config)
    chosen = _choose([*stages, *([generation] if generation else [])], only_stage)
    if dry_run:
        print_plan([_plan(stage) for stage in chosen])
        return None
    with logging_the_end(), job(config["process_timeout"]) as launcher:
        if generation in chosen:
            _plan(generation)  # what is wrong with its settings is said before any work
            check_chain(generation, stages)
            check_validation(generation)
        _say_what_loads(config)
        chosen_stages = [stage for stage in chosen if stage is not generation]
        tokenizer = _train_stages(config, stages, chosen_stages, launcher, run_info)
        if generation is None or generation not in chosen:
            return tokenizer
        if stages and tokenizer is None:
            raise ConfigError("the generator's tokenizer is not finished; train all stages first, without --stage")
        return _train_generator(config, generation, launcher, None if stages else run_info)


def _say_what_loads(config: Mapping[str, Any]) -> None:
    """Say which line loads what is exported, of a config with components that no registry has."""
    names = dotted_models(config)
    if names:
        loaders = ["load_tokenizer"] * bool(config["stages"]) + ["load_latent_diffusion"] * (_has_generator(config))
        lines = " and ".join(loading_line(loader, names) for loader in loaders)
        _say(
            f"named by import path: {', '.join(names)}; what this run exports loads only with {lines}, or once a "
            "plugin registers the name"
        )


def _has_generator(config: Mapping[str, Any]) -> bool:
    return "generator" in (config["generation"] if config["stages"] else config)


def _train_stages(
    config: Mapping[str, Any],
    stages: Sequence[Stage],
    chosen: Sequence[Stage],
    launcher: str,
    run_info: Mapping[str, Any] | None,
) -> Path | None:
    """Train those of the stages that are chosen and left, and return the tokenizer's folder once all are finished."""
    datasets = {stage.name: build_datasets(stage) for stage in chosen}
    plans = [_plan(stage, len(datasets[stage.name][0])) for stage in chosen]
    if is_first() and plans:
        print_plan(plans)
    left = [stage for stage in chosen if _is_left(stage, datasets[stage.name][1])]
    check_before_training(left, plans)
    with lock_folder(config["work_dir"], wanted=is_first() and bool(stages)):
        if left:
            _note(config, run_info)
        for stage in left:
            stop_if_preempted(
                Preempted(f"stopped by SIGTERM before stage '{stage.name}'; the same command goes on with it")
            )
            with multiplying(stage["precision"]):
                run_stage(stage, *datasets[stage.name], launcher)
        return _finish(config, stages) if stages else None


def _train_generator(
    config: Mapping[str, Any], generation: Generation, launcher: str, run_info: Mapping[str, Any] | None
) -> Path:
    stop_if_preempted(Preempted("stopped by SIGTERM before the generator's training; the same command goes on with it"))
    if not _is_left(generation, generation["validation"]["num"] or None):
        return save_result(generation)
    with lock_folder(config["work_dir"], wanted=is_first()):
        _note(config, run_info)
        with multiplying(generation["precision"]):
            return train_generator(generation, launcher)


def _note(config: Mapping[str, Any], run_info: Mapping[str, Any] | None) -> None:
    if run_info is not None and is_first():
        write_run_info(config["work_dir"], run_info)


def _plan(stage: Stage, num_images: int | None = None) -> StagePlan:
    if isinstance(stage, Generation):
        return plan_generation(stage, world()[1], num_images)
    return plan_stage(stage, world()[1], num_images)


def _is_left(stage: Stage, val: Any) -> bool:
    """Tell whether a stage is still to be trained; report what differs from the settings it was trained with so far."""
    finished = is_finished(stage, validated=val is not None)
    if not agree(finished):
        raise CheckpointError(f"not all processes find stage '{stage.name}' in {stage.folder} alike; start again")
    report_config_diff(stage, finished)
    if finished:
        _say(f"{stage.name}: finished already, skipped")
    return not finished


def is_finished(stage: Stage, validated: bool) -> bool:
    """Tell whether a stage has done all its steps and, if it is `validated`, measured the result."""
    done = finished_steps(stage.folder) >= stage["steps"]
    result = stage.folder / "result.json"
    return done and (not validated or (result.is_file() and read_result(result)["step"] >= stage["steps"]))


def _choose(stages: Sequence[Stage], name: str | None) -> list[Stage]:
    chosen = [stage for stage in stages if name in (None, stage.name)]
    if not chosen:
        raise ConfigError(unknown("stage", name, [stage.name for stage in stages]))
    return chosen


def _finish(config: Mapping[str, Any], stages: Sequence[Stage]) -> Path | None:
    """Export the tokenizer once the last stage is finished, and print the table of all that are."""
    if is_first():
        print_summary(stages)
    if finished_steps(stages[-1].folder) < stages[-1]["steps"]:
        return None
    folder = Path(config["work_dir"]) / "tokenizer"
    if is_first():
        own = import_components(dotted_models(config))
        load_stage_tokenizer(stages[-1].folder, components=own).save_pretrained(folder)
        print(f"Tokenizer: {folder}   (aligntok.load_tokenizer('{folder}'))")
        pictures = sorted((stages[-1].folder / "pictures").glob("*.png"))
        if pictures:
            print(f"Reconstructions of held-out images: {pictures[-1]}")
    barrier()
    return folder


def _say(text: str) -> None:
    if is_first():
        print(text, flush=True)
