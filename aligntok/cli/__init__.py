"""``aligntok ...``: the same verbs as tools/, thin; heavy libraries load when a verb needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aligntok.cli.arguments import Command, dispatch, parse_options, reporting_errors
from aligntok.cli.compare import compare
from aligntok.cli.evaluate import analyze_latents, evaluate, measure_cost
from aligntok.cli.plugins import plugins
from aligntok.cli.report import report
from aligntok.cli.sample import sample
from aligntok.cli.train import cache_latents, export, train

VERBS: dict[str, Command] = {
    "train": train,
    "export": export,
    "cache-latents": cache_latents,
    "sample": sample,
    "evaluate": evaluate,
    "compare": compare,
    "analyze-latents": analyze_latents,
    "measure-cost": measure_cost,
    "report": report,
    "plugins": plugins,
}


@reporting_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """``aligntok VERB ...``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        from aligntok import __version__

        print(f"aligntok {__version__}")
        return 0
    return dispatch("aligntok", VERBS, words)


__all__ = [
    "VERBS",
    "analyze_latents",
    "cache_latents",
    "compare",
    "evaluate",
    "export",
    "main",
    "measure_cost",
    "parse_options",
    "plugins",
    "report",
    "reporting_errors",
    "sample",
    "train",
]
