"""What a generator's training is going to do, found out before its first step, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from aligntok.device import check_precision
from aligntok.diffusion.times import sample_times
from aligntok.engine.optim import check_optimizer, check_schedule
from aligntok.errors import ConfigError
from aligntok.latent_diffusion import check_null_class
from aligntok.registry import DATASETS, GENERATORS, check_keywords
from aligntok.training.generation.settings import Generation
from aligntok.training.plan import (
    StagePlan,
    build_on_meta,
    check_hooks,
    checkpoint_bytes,
    make_plan,
    trainable_and_frozen,
)


class GeneratorOnMeta(nn.Module):
    """What of a :class:`~aligntok.training.generation.model.GenerationModel` is trained, without a tokenizer."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def trained_parts(self) -> dict[str, nn.Module]:
        """Return the generator."""
        return {"generator": self.generator}

    def frozen_parts(self) -> dict[str, nn.Module]:
        """Return nothing."""
        return {}


@build_on_meta.register
def _(generation: Generation) -> GeneratorOnMeta:
    with torch.device("meta"):
        return GeneratorOnMeta(GENERATORS.build(dict(generation["generator"])))


def plan_generation(generation: Generation, processes: int, num_images: int | None = None) -> StagePlan:
    """Plan a generator's training for a number of processes and, if known, of training images. Raises ConfigError."""
    model: Any = build_on_meta(generation)
    _check_settings(generation, model.generator)
    parts = model.trained_parts()
    averages = generation["ema"]
    count = len(averages["sigma_rel"]) + len(averages["decays"]) if averages else 0
    return make_plan(
        generation,
        processes,
        num_images,
        parameters={"generator": trainable_and_frozen(model.generator)},
        checkpoint_bytes=checkpoint_bytes(parts, {"generator": count}, {"generator": generation["optimizer"]}),
        frozen_bytes=0,
    )


def _check_settings(generation: Generation, generator: Any) -> None:
    where = generation.name
    check_optimizer(generation["optimizer"], f"{where}, optimizer")
    check_schedule(generation["schedule"] or [], where)
    check_hooks(generation["hooks"], where)
    check_precision(generation["precision"], f"{where}: ")
    transport = generation["transport"]
    sample_times(torch.zeros(1), transport["times"], **{key: transport[key] for key in ("mean", "scale", "shift")})
    if transport["direction_weight"] < 0:
        raise ConfigError(f"{where}: transport.direction_weight={transport['direction_weight']}; 0 leaves it out")
    if isinstance(generation["compile"], Mapping):
        check_keywords(torch.compile, dict(generation["compile"]), who="compile")
    data = generation["data"]["train"]
    check_keywords(
        DATASETS.get(data["type"]),
        {key: value for key, value in data.items() if key != "type"},
        who=f"{where}, data.train: {DATASETS.kind} '{data['type']}'",
    )
    check_null_class(generation["sampling"]["cfg_scale"], generator, f"{where}, sampling")
    channels = generation["sampling"]["cfg_channels"]
    if channels is not None and channels > generator.in_channels:
        raise ConfigError(f"{where}: sampling.cfg_channels={channels} of {generator.in_channels} latent channels")
