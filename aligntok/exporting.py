"""Exports for other programs: models and pipelines of diffusers, ONNX."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from aligntok.data.latent_shards import LatentStatistics, read_manifest
from aligntok.diffusers.export import PIPELINE, write_autoencoder, write_pipeline
from aligntok.errors import ConfigError, DataError
from aligntok.io.folders import checked_target
from aligntok.loading import has_generator, load_latent_diffusion, load_tokenizer
from aligntok.onnx import ENCODER, write_onnx
from aligntok.tokenizer import Tokenizer
from aligntok.weights.diffusers import WEIGHTS


def export_for_diffusers(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    weights: Literal["raw", "ema"] | None = None,
    average: float | None = None,
    latents: str | os.PathLike[str] | None = None,
    components: Mapping[str, Any] | None = None,
) -> tuple[Path, str]:
    """Write what `source` has as a folder that diffusers loads; return the folder, and the class that does.

    A generator of prompts, where its class can be exported, is a transformer of diffusers', with its tokenizer in
    ``vae/``; one of classes becomes a pipeline with it; of a source without a generator the tokenizer becomes an
    autoencoder. A generator's mean and deviation of latents are in the config in ``vae/``. `source` and the
    others as in :func:`load_latent_diffusion` and :func:`load_tokenizer`; latents: a cache that the tokenizer made,
    whose mean and deviation its config is to have.

    Raises ConfigError for a generator that diffusers has no class for, or if it would overwrite another folder, and
    what loading raises.
    """
    target = checked_target(out, WEIGHTS, PIPELINE, "vae/config.json")
    if not has_generator(Path(source)):
        tokenizer, statistics = _tokenizer(source, weights, average, latents, components)
        return target, f"{_home(kind := write_autoencoder(target, tokenizer, statistics))}.{kind}"
    if latents is not None:
        raise ConfigError(
            f"{source} has a generator, whose own mean and deviation are written, into vae/config.json; leave "
            "--latents out"
        )
    model = load_latent_diffusion(source, weights=weights, average=average, components=components)
    if hasattr(model.generator, "export_diffusers"):
        model.generator.export_diffusers(target)
        write_autoencoder(target / "vae", model.tokenizer, model.statistics)
        return target, "diffusers.FluxTransformer2DModel"
    if model.generator.conditioned_on != "classes":
        name = type(model.generator).__name__
        raise ConfigError(f"diffusers has no class for a {name}; leave --format diffusers out")
    write_pipeline(target, model)
    return target, "aligntok.diffusers.LightningDiTPipeline"


def export_onnx(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    weights: Literal["raw", "ema"] | None = None,
    average: float | None = None,
    latents: str | os.PathLike[str] | None = None,
    components: Mapping[str, Any] | None = None,
) -> Path:
    """Write the tokenizer of `source` as ``encoder.onnx`` and ``decoder.onnx`` in a folder, and return it.

    The arguments are those of `export_for_diffusers`. Raises ConfigError, as :func:`aligntok.onnx.write_onnx` does, and
    what loading raises.
    """
    target = checked_target(out, ENCODER, says=None)
    tokenizer, statistics = _tokenizer(source, weights, average, latents, components)
    write_onnx(target, tokenizer, statistics)
    return target


def _tokenizer(
    source: str | os.PathLike[str],
    weights: Literal["raw", "ema"] | None,
    sigma_rel: float | None,
    latents: str | os.PathLike[str] | None,
    components: Mapping[str, Any] | None,
) -> tuple[Tokenizer, LatentStatistics | None]:
    """Return a tokenizer, and the statistics of a cache of its latents. Raises DataError for another one's cache."""
    tokenizer = load_tokenizer(source, components=components, weights=weights, sigma_rel=sigma_rel, rebuild=True)
    if latents is None:
        return tokenizer, None
    manifest = read_manifest(latents)
    if manifest.encoding["tokenizer"]["identity"] != tokenizer.identity:
        raise DataError(f"{latents} holds latents of another tokenizer than {source}; give a cache that it made")
    return tokenizer, manifest.statistics


def _home(kind: str) -> str:
    return "diffusers" if kind == "AutoencoderKL" else "aligntok.diffusers"
