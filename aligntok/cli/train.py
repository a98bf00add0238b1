"""``train``, ``cache-latents`` and ``export``: making tokenizers and generators, and sharing them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aligntok.cli.arguments import parse, parse_options, reporting_errors


@reporting_errors
def train(arguments: Sequence[str] | None = None) -> int:
    """Train the stages of a config."""
    parser = argparse.ArgumentParser(prog="train", description="Train a tokenizer, stage after stage.")
    parser.add_argument("config", help="a config file, such as configs/aligntok_dinov2_f16d32.py")
    parser.add_argument("--stage", help="run only the stage of this name")
    parser.add_argument("--work-dir", help="where everything is written (default: work_dirs/<config name>)")
    parser.add_argument("--dry-run", action="store_true", help="print what each stage would do, and stop")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override config keys, e.g. seed=1 stages.0.steps=10",
    )
    given = parser.parse_args(arguments)
    options = parse_options(given.cfg_options)
    if given.work_dir:
        options["work_dir"] = given.work_dir

    from aligntok.training.config import load_config
    from aligntok.training.run import run
    from aligntok.training.run_info import run_info_of

    run_info = run_info_of(given.config, options)
    run(load_config(given.config, options), only_stage=given.stage, dry_run=given.dry_run, run_info=run_info)
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
    parser = argparse.ArgumentParser(prog="export", description="Write a tokenizer as a folder that anyone can load.")
    parser.add_argument("source", help="a work folder or stage, a saved tokenizer, a published checkpoint, a hub id")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument("--weights", choices=["raw", "ema"], help="of a work folder (default: ema where it is kept)")
    parser.add_argument("--sigma-rel", type=float, help="EMA width; one that was not kept is made from the snapshots")
    given = parser.parse_args(arguments)

    from aligntok.loading import export_tokenizer

    export_tokenizer(given.source, given.out, given.weights, given.sigma_rel)
    print(f"Tokenizer: {given.out}")
    return 0
