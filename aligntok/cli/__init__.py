"""``aligntok ...``: the same verbs as tools/, thin; what a verb needs is imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from aligntok.cli.commands import Command, dispatch, reporting_errors

#: Every verb: the module of this package that has it, and what it does.
_VERBS = {
    "train": ("training", "Train the stages of a config."),
    "export": ("training", "Write the tokenizer of a work folder, or any other, as a folder to share."),
    "cache-latents": ("training", "Encode a data set once, for a generator to train on."),
    "sample": ("generating", "Draw samples from a trained generator."),
    "reconstruct": ("generating", "Encode and decode pictures of your own, and tell how near each comes back."),
    "evaluate": ("measuring", "Measure reconstructions, samples, or what a linear probe sees; make references."),
    "compare": ("measuring", "Train and measure several tokenizers, and a generator on each, at one budget."),
    "analyze-latents": ("measuring", "Compare the latent spaces of tokenizers."),
    "measure-cost": ("measuring", "Tell what configs cost: parameters, operations, seconds, memory, and on more GPUs."),
    "report": ("measuring", "Write one HTML page about runs: curves, pictures, results."),
    "app": ("generating", "Open a page on this machine to try tokenizers and a generator."),
    "index": ("datasets", "Make an index of tar or parquet shards, on disks or far away, to train from."),
    "check": ("datasets", "Check that the files of a folder are as they were written, and that none is missing."),
    "data": ("datasets", "Look at data sets."),
    "env": ("about", "Say what is installed here, which devices there are, and which kernels attend."),
    "configs": ("about", "List the configs that come with AlignTok, or copy one, to change it."),
    "completion": ("about", "Print what lets bash or zsh complete verbs and options."),
    "plugins": ("about", "List the plugins and what each adds, or check that every component can be imported."),
}


def _later(name: str, about: str) -> Command:
    """Return a verb that is imported when it is called."""

    def command(arguments: Sequence[str] | None = None) -> int:
        return loaded(name)(arguments)

    command.__doc__ = about
    return command


def loaded(name: str) -> Command:
    """Return a verb with what it needs to read its options."""
    command: Command = getattr(import_module(f"aligntok.cli.{_VERBS[name][0]}"), name.replace("-", "_"))
    return command


VERBS: dict[str, Command] = {name: _later(name, about) for name, (_, about) in _VERBS.items()}


def __getattr__(name: str) -> Command:
    """Return the verb that is called so: ``from aligntok.cli import train``."""
    if name.replace("_", "-") not in VERBS:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return VERBS[name.replace("_", "-")]


@reporting_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """``aligntok VERB ...``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        from aligntok import __version__

        print(f"aligntok {__version__}")
        return 0
    return dispatch("aligntok", VERBS, words)
