"""``train``, ``cache-latents`` and ``export``: making tokenizers and generators, and sharing them."""

from __future__ import annotations

from collections.abc import Sequence

from aligntok.cli.arguments import parse, reporting_errors


@reporting_errors
def train(arguments: Sequence[str] | None = None) -> int:
    """Train the stages of a config."""
    from aligntok.training.request import TrainRequest

    asked = parse(TrainRequest, arguments, "train", positional=("config",))

    from aligntok.training.config import load_config
    from aligntok.training.run import run
    from aligntok.training.run_info import run_info_of

    config, run_info = load_config(asked.config, asked.options), run_info_of(asked.config, asked.options)
    run(config, only_stage=asked.stage, dry_run=asked.dry_run, run_info=run_info)
    return 0


@reporting_errors
def cache_latents(arguments: Sequence[str] | None = None) -> int:
    """Encode a data set once, for a generator to train on."""
    from aligntok.caching.settings import CacheRequest

    request = parse(CacheRequest, arguments, "cache-latents", positional=("tokenizer", "data", "out"))

    from aligntok import caching

    caching.cache_latents(request)
    return 0


@reporting_errors
def export(arguments: Sequence[str] | None = None) -> int:
    """Write the tokenizer of a work folder, or any other that can be loaded, as a folder to share."""
    from aligntok.training.request import ExportRequest

    asked = parse(ExportRequest, arguments, "export", positional=("source", "out"))

    from aligntok.loading import export_tokenizer

    export_tokenizer(asked.source, asked.out, asked.weights, asked.ema)
    print(f"Tokenizer: {asked.out}")
    return 0
