"""What the commands do, as functions to call from a notebook or a script of one's own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

from aligntok.annotations import checked
from aligntok.sampling.settings import SampleRequest
from aligntok.training.request import TrainRequest

Evaluation = Literal["reconstruction", "generation", "text-image", "linear-probe", "make-reference"]
#: Where each evaluation is: its module, its function, and in :mod:`aligntok.evaluation.settings` what it is told.
_EVALUATIONS = {
    "reconstruction": ("reconstruction", "evaluate_reconstruction", "ReconstructionSettings"),
    "generation": ("generation", "evaluate_generation", "GenerationSettings"),
    "text-image": ("text_image", "evaluate_text_image", "TextImageSettings"),
    "linear-probe": ("linear_probe", "linear_probe", "ProbeSettings"),
    "make-reference": ("references", "make_reference", "ReferenceSettings"),
}


@checked
def train(config: str | Path, *, stage: str | None = None, dry_run: bool = False, **overrides: Any) -> Path | None:
    """Train the stages of a config file, as ``aligntok train CONFIG`` does, and return the folder of what is finished.

    stage: this one alone; dry_run: print what each would do, and stop. overrides: keys of the config, whose dicts are
    merged: ``data_root="photographs", optimizer=dict(lr=1e-4)``; those with dots as ``**{"stages.0.steps": 10}``.
    Called again, it goes on where it stopped. Raises what :func:`aligntok.training.run.run` does.
    """
    from aligntok.training.run import read_request, run

    asked = TrainRequest(config=config, stage=stage, dry_run=dry_run, cfg_options=overrides)
    loaded, run_info = read_request(asked)
    return run(loaded, only_stage=asked.stage, dry_run=asked.dry_run, run_info=run_info)


@checked
def sample(run: str | Path, **options: Any) -> Path:
    """Draw samples of a trained generator into a folder, as ``aligntok sample RUN`` does, and return the folder.

    options: the fields of :class:`aligntok.sampling.settings.SampleRequest`, what differs of sampling in `sampling`:
    ``num_samples=16, sampling=dict(steps=20)``. Raises what :func:`aligntok.sampling.samples.sample_images` does.
    """
    from aligntok.sampling.guidance_sweep import sweep_guidance
    from aligntok.sampling.samples import sample_images

    asked = SampleRequest(run=run, **options)
    return sample_images(asked) if asked.guidance_sweep is None else sweep_guidance(asked)


@checked
def evaluate(what: Evaluation, **options: Any) -> Any:
    """Measure what is finished, as ``aligntok evaluate WHAT`` does, and return its result, or a reference's path.

    what: "reconstruction", "generation", "text-image", "linear-probe" or "make-reference". options: the fields of its
    class in :mod:`aligntok.evaluation.settings`: ``evaluate("reconstruction", tokenizer=run, data="photographs",
    split="val").metrics``. Raises ConfigError for another `what`, and what the evaluation does.
    """
    module, function, told = _EVALUATIONS[what]
    asked = getattr(importlib.import_module("aligntok.evaluation.settings"), told)(**options)
    return getattr(importlib.import_module(f"aligntok.evaluation.{module}"), function)(asked)
