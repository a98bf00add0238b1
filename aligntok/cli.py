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


def parse_options(pairs: Sequence[str], option: str = "--cfg-options") -> dict[str, Any]:
    """Turn the ``key=value`` words of an option into a dict; values are Python literals, or text where they are none.

    Raises ConfigError for a word without '='.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} takes key=value, not '{pair}'")
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


def _sample_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sample",
        description="Draw samples from a trained generator. The same command started again goes on where it stopped; "
        "under torchrun every process takes its share. Options of sampling default to what the run's config says.",
    )
    add = parser.add_argument
    add("run", help="a work folder with a trained generator, or a saved one")
    # torchrun reads --num as a beginning of its own --numa-binding under Python 3.11, hence the second name.
    add("--num", "--num-samples", type=int, default=64, metavar="N", help="samples (default: 64)")
    add("--out", help="the folder to write (default: RUN/samples/<the settings>)")
    add("--weights", choices=["raw", "ema"], help="of a work folder (default: ema where it is kept)")
    add("--average", type=float, metavar="W", help="width or decay of the EMA (default: the config's ema.inference)")
    add("--labels", choices=["random", "balanced"], help="random by the sample's seed (default), or each class in turn")
    add("--classes", nargs="+", default=[], metavar="CLASS", help="these, over and over: numbers or names")
    add("--seed", type=int, default=0, help="of sample 0; sample i has seed + i (default: 0)")
    add("--size", type=image_size, metavar="N or HxW", help="pixels (default: those of the training images)")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32", help="of the generator's arithmetic")
    add("--batch-size", type=int, default=32, metavar="N", help="samples at once, of one process (default: 32)")
    add("--no-npz", action="store_true", help="no samples.npz")
    add("--grid", type=int, default=64, metavar="N", help="samples in grid.png, 0 for none (default: 64)")
    add("--beside", metavar="DATA", help="images to show beside samples of their class, in beside_real.png")
    add("--split", help="of --beside: a subfolder, or a word in the names of its files")

    add = parser.add_argument_group("sampling").add_argument
    add("--sampler", help="euler, heun, dopri5, euler_maruyama or ddim")
    add("--steps", type=int, metavar="N", help="of the solver")
    add("--shift", type=float, metavar="S", help="of the time grid, below 1 towards noise")
    add("--sampler-options", nargs="+", default=[], metavar="KEY=VALUE", help="the sampler's own, e.g. eta=0.5 of ddim")
    add("--cfg-scale", type=float, metavar="S", help="of guidance; 1 is none")
    add(
        "--cfg-interval", nargs="+", metavar=("LO", "HI"), help="of t where there is guidance (t = 0 is noise), or none"
    )
    add("--cfg-channels", type=int, metavar="N", help="guide the first N latent channels only; 0 for all")
    add("--preserve-energy", action=argparse.BooleanOptionalAction, help="keep the energy of the unguided velocity")
    add("--autoguidance", metavar="RUN2", help="guide away from this weaker generator, not from the null class")

    add = parser.add_argument_group("guidance sweep").add_argument
    add("--guidance-sweep", nargs="+", type=float, metavar="S", help="compare these guidance scales instead, and 1")
    add("--sweep-steps", nargs="+", type=int, default=[], metavar="N", help="each with these numbers of steps")
    return parser


def _sampling_changes(given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of sampling that were given. Raises ConfigError for words that are none."""
    names = ("sampler", "steps", "shift", "cfg_scale", "preserve_energy")
    changes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.sampler_options:
        changes["options"] = parse_options(given.sampler_options, "--sampler-options")
    if given.cfg_channels is not None:
        changes["cfg_channels"] = given.cfg_channels or None
    words = given.cfg_interval
    if words is not None:
        try:
            changes["cfg_interval"] = None if words == ["none"] else tuple(map(float, words))
        except ValueError:
            changes["cfg_interval"] = ()
        if changes["cfg_interval"] is not None and len(changes["cfg_interval"]) != 2:
            raise ConfigError(f"--cfg-interval takes two times, such as 0.1 1, or none; not '{' '.join(words)}'")
    return changes


@reporting_errors
def sample(arguments: Sequence[str] | None = None) -> int:
    """Draw samples from a trained generator."""
    given = _sample_parser().parse_args(arguments)
    sweep = given.guidance_sweep
    if given.sweep_steps and sweep is None:
        raise ConfigError("--sweep-steps belongs to --guidance-sweep; for samples give --steps")
    if sweep is not None and (given.cfg_scale is not None or (given.steps is not None and given.sweep_steps)):
        raise ConfigError(
            "--guidance-sweep and --sweep-steps say which scales and steps; leave out --cfg-scale, --steps"
        )
    changes = _sampling_changes(given)

    from aligntok.training.drawing import Drawing

    choices = {name: getattr(given, name) for name in ("weights", "average", "labels", "classes", "size", "precision")}
    drawing = Drawing(given.run, changes=changes, seed=given.seed, autoguidance=given.autoguidance, **choices)
    if sweep is not None:
        from aligntok.training.guidance_sweep import sweep_guidance

        sweep_guidance(drawing, sweep, given.sweep_steps, given.num, given.out, given.batch_size)
        return 0
    from aligntok.training.sampling import sample_images

    pictures = dict(grid=given.grid, beside=given.beside, split=given.split)
    sample_images(drawing, given.num, given.out, given.batch_size, npz=not given.no_npz, **pictures)
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


VERBS: dict[str, Command] = {
    "train": train,
    "export": export,
    "cache_latents": cache_latents,
    "sample": sample,
    "plugins": plugins,
}


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
