"""``compare``: tokenizers at one budget, a generator on each, all measured alike."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aligntok.cli.arguments import parse_options, reporting_errors


@reporting_errors
def compare(arguments: Sequence[str] | None = None) -> int:
    """Train and measure several tokenizers, and a generator on each, at one budget."""
    parser = argparse.ArgumentParser(
        prog="compare",
        description="Train the tokenizers that a comparison's config names, at one budget of images, the same "
        "generator on each, and measure all of them alike. Says beforehand what it takes. The same command started "
        "again goes on where it stopped; under torchrun every process takes its share.",
    )
    parser.add_argument("config", help="a comparison's config file, such as my_comparison.py")
    parser.add_argument("--work-dir", help="where everything is written (default: work_dirs/<config name>)")
    parser.add_argument("--dry-run", action="store_true", help="say what it takes, and stop")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="train and measure only these tokenizers, so that several share the work",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override the comparison's keys"
    )
    given = parser.parse_args(arguments)
    options = parse_options(given.cfg_options)
    if given.work_dir:
        options["work_dir"] = given.work_dir

    from aligntok.evaluation.comparison import compare as run

    run(given.config, options, dry_run=given.dry_run, only=given.only)
    return 0
