"""``aligntok ...``: the same verbs as tools/, thin; heavy libraries load when a verb needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aligntok.cli.arguments import Command, parse_options, reporting_errors
from aligntok.cli.comparing import compare
from aligntok.cli.costing import measure_cost
from aligntok.cli.evaluating import evaluate
from aligntok.cli.installed import plugins
from aligntok.cli.latent_space import analyze_latents
from aligntok.cli.reporting import report
from aligntok.cli.sample import sample
from aligntok.cli.train import cache_latents, export, train
from aligntok.errors import ConfigError

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


def main(arguments: Sequence[str] | None = None) -> int:
    """``aligntok VERB ...``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in VERBS:
        return VERBS[words[0]](words[1:])
    if words and words[0].replace("_", "-") in VERBS:
        print(f"ConfigError: aligntok: {words[0]} is called {words[0].replace('_', '-')} now", file=sys.stderr)
        return ConfigError.exit_status
    if words == ["--version"]:
        from aligntok import __version__

        print(f"aligntok {__version__}")
        return 0
    lines = [f"  {name:15s} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    print("usage: aligntok VERB ... (each has --help)\n\n" + "\n".join(lines))
    return 0 if words in (["--help"], ["-h"], []) else 2


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
