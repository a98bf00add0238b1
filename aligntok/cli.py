"""``aligntok ...``: the same verbs as tools/, thin; heavy libraries load when a verb needs them."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from aligntok.errors import AlignTokError, ConfigError

Command = Callable[[Sequence[str] | None], int]


def reporting_errors(command: Command) -> Command:
    """Turn a user's mistake into one message on stderr and its exit status; a defect of ours keeps its traceback."""

    @wraps(command)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        try:
            return command(arguments)
        except AlignTokError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return error.exit_status

    return wrapped


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``key=value`` words into a dict; values are Python literals, or text where they are none.

    Raises ConfigError for a word without '='.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--cfg-options takes key=value, not '{pair}'")
        if value == "...":  # as the configs' own docstrings write it
            raise ConfigError(f"{pair}: put a real value in place of the dots, such as {key}=/path/to/it")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval may raise
            options[key] = value
    return options


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

    run(load_config(given.config, options), only_stage=given.stage, dry_run=given.dry_run)
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

    from aligntok.training.loading import export_tokenizer

    export_tokenizer(given.source, given.out, given.weights, given.sigma_rel)
    print(f"Tokenizer: {given.out}")
    return 0


def image_size(text: str) -> tuple[int, ...]:
    """Turn ``256`` or ``256x384`` (height x width) into (H, W). Raises ValueError, which argparse explains."""
    sides = tuple(int(side) for side in text.split("x"))
    return sides * 2 if len(sides) == 1 else sides


@reporting_errors
def cache_latents(arguments: Sequence[str] | None = None) -> int:
    """Encode a data set once, for a generator to train on."""
    parser = argparse.ArgumentParser(
        prog="cache_latents",
        description="Encode a data set into shards of latents with their mean and deviation. The same command started "
        "again goes on where it stopped; under torchrun every process takes its share.",
    )
    add = parser.add_argument
    add("tokenizer", help="a work folder or stage, a saved tokenizer, a published checkpoint, a hub id")
    add("data", help="images: a folder, a zip, shards, parquet files, or hf://owner/name")
    add("out", help="the folder to write")
    add("--image-size", type=image_size, default=(256, 256), metavar="N or HxW", help="pixels (default: 256)")
    add("--split", help="of the data: a subfolder, or a word in the names of its files")
    add("--weights", choices=["raw", "ema"], help="of a work folder (default: ema where it is kept)")
    add("--no-flip", action="store_true", help="no second copy of mirrored images")
    add("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the stored latents (default: fp32)")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32", help="of the tokenizer's arithmetic")
    add("--batch-size", type=int, default=32, help="images at once, of one process (default: 32)")
    add("--shard-size", type=int, default=4096, help="images in a file (default: 4096)")
    add("--workers", type=int, default=4, help="processes that read images, for each that encodes (default: 4)")
    add("--max-unreadable", type=int, metavar="N", help="images that may be left out (default: 1 %% of them)")
    given = parser.parse_args(arguments)

    from aligntok.training.latent_cache import cache_latents as encode
    from aligntok.training.latent_encoding import Encoding

    encoding = Encoding(given.image_size, not given.no_flip, given.dtype, given.precision, given.shard_size)
    how = dict(batch_size=given.batch_size, workers=given.workers, max_unreadable=given.max_unreadable)
    encode(given.tokenizer, given.data, given.out, encoding, given.split, given.weights, **how)
    return 0


@reporting_errors
def plugins(arguments: Sequence[str] | None = None) -> int:
    """List the plugins and what each adds, or check that every component can be imported."""
    parser = argparse.ArgumentParser(prog="aligntok plugins", description="What is installed, and whether it works.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="plugins, their versions and components; failed ones with the reason")
    listing.add_argument("--json", action="store_true", help="for programs")
    verbs.add_parser("check", help="import every component; exit status 1 if anything is broken")
    given = parser.parse_args(arguments)

    from aligntok.plugins.inspection import check_components, list_plugins

    if given.verb == "check":
        problems = check_components()
        print("\n".join(problems) or "every plugin loads and every component can be imported")
        return 1 if problems else 0
    found = list_plugins()
    print(json.dumps([plugin.as_dict() for plugin in found], indent=2) if given.json else "\n".join(map(str, found)))
    return 0


VERBS: dict[str, Command] = {"train": train, "export": export, "cache_latents": cache_latents, "plugins": plugins}


def main(arguments: Sequence[str] | None = None) -> int:
    """``aligntok VERB ...``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in VERBS:
        return VERBS[words[0]](words[1:])
    if words == ["--version"]:
        from aligntok import __version__

        print(f"aligntok {__version__}")
        return 0
    lines = [f"  {name:13s} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    print("usage: aligntok VERB ... (each has --help)\n\n" + "\n".join(lines))
    return 0 if words in (["--help"], ["-h"], []) else 2


if __name__ == "__main__":
    raise SystemExit(main())
