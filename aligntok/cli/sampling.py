"""``sample``: pictures from a trained generator."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from aligntok.cli.arguments import image_size, parse_options, reporting_errors
from aligntok.errors import ConfigError


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
    add("--reference", metavar="R", help="of tools/evaluate.py make-reference: measure each one's distance from it")
    add("--extractor", default="inception_v3", metavar="NAME", help="the reference's features (default: inception_v3)")
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
    if given.reference and sweep is None:
        raise ConfigError("--reference belongs to --guidance-sweep; samples are measured by evaluate.py generation")
    if given.sweep_steps and sweep is None:
        raise ConfigError("--sweep-steps belongs to --guidance-sweep; for samples give --steps")
    if sweep is not None and (given.cfg_scale is not None or (given.steps is not None and given.sweep_steps)):
        raise ConfigError(
            "--guidance-sweep and --sweep-steps say which scales and steps; leave out --cfg-scale, --steps"
        )
    changes = _sampling_changes(given)

    from aligntok.sampling.pipeline import SampleRequest

    choices = {name: getattr(given, name) for name in ("weights", "average", "labels", "classes", "size", "precision")}
    drawing = SampleRequest(given.run, changes=changes, seed=given.seed, autoguidance=given.autoguidance, **choices)
    if sweep is not None:
        from aligntok.sampling.guidance_sweep import sweep_guidance

        distance = dict(type="generation", reference=given.reference, extractor=given.extractor, features=False)
        metrics = [distance] if given.reference else []
        sweep_guidance(drawing, sweep, given.sweep_steps, given.num, given.out, given.batch_size, metrics)
        return 0
    from aligntok.sampling import sample_images

    pictures = dict(grid=given.grid, beside=given.beside, split=given.split)
    sample_images(drawing, given.num, given.out, given.batch_size, npz=not given.no_npz, **pictures)
    return 0
