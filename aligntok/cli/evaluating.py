"""``evaluate``: reconstruction, generation, linear-probe, and the references that samples are compared with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from aligntok.cli import probing
from aligntok.cli.arguments import image_size, parse_options, reporting_errors
from aligntok.errors import ConfigError

EXTRACTOR = (
    "features to compare on: inception_v3 (default), inception_v3:/path/to/its/weights, timm:MODEL, "
    "open_clip:MODEL/TAG, or the name of an extractor or encoder that a plugin adds"
)
DATA = "images: a folder, a zip, shards, parquet files, or hf://owner/name"
TOKENIZER = "a work folder or stage, a saved tokenizer, a published checkpoint, a hub id"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate",
        description="Measure a tokenizer or samples; under torchrun every process takes its share. Numbers go to the "
        "terminal, a JSON file, TensorBoard and a report to read.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_reconstruction(verbs.add_parser("reconstruction", help="rFID, PSNR, SSIM, LPIPS of a tokenizer on images"))
    _add_generation(verbs.add_parser("generation", help="FID, sFID, IS, KID, precision, recall of samples"))
    probing.add_arguments(verbs.add_parser("linear-probe", help="top-1 and top-5 of a linear classifier on latents"))
    _add_reference(verbs.add_parser("make-reference", help="the statistics of real images that samples are held to"))
    return parser


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image-size", type=image_size, default=(256, 256), metavar="N or HxW", help="pixels (default: 256)")
    add("--split", help="of the data: a subfolder, or a word in the names of its files")
    add("--num", "--num-images", type=int, metavar="N", help="only so many images, evenly spread (default: all)")


def _add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch-size", type=int, default=32, metavar="N", help="images at once, of one process (default: 32)")
    add("--workers", type=int, default=2, metavar="N", help="processes that read images (default: 2)")


def _add_reconstruction(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("tokenizer", help=TOKENIZER)
    add("data", help=DATA)
    add("--out", help="the folder to write (default: TOKENIZER/evaluation/reconstruction_<data>)")
    _add_images(parser)
    add("--weights", choices=["raw", "ema"], help="of a work folder (default: ema where it is kept)")
    add("--extractor", default="inception_v3", metavar="NAME", help=EXTRACTOR + "; or none")
    add(
        "--perceptual",
        nargs="+",
        default=["lpips"],
        metavar="LOSS",
        help="distances, by name, or none (default: lpips)",
    )
    add("--perceptual-options", nargs="+", default=[], metavar="KEY=VALUE", help="of each of them, e.g. net=alex")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32", help="of the tokenizer's arithmetic")
    add("--table", choices=["csv", "parquet"], default="csv", help="of every image's values (default: csv)")
    _add_running(parser)


def _add_generation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("samples", help="a folder that tools/sample.py wrote, a folder or zip of pictures, or an .npz with arr_0")
    add("--reference", required=True, metavar="R", help="a file of make-reference, or ADM's .npz")
    add("--out", help="the folder to write (default: evaluation/... in tools/sample.py's folder, else here)")
    add("--extractor", default="inception_v3", metavar="NAME", help=EXTRACTOR)
    add("--num", "--num-samples", type=int, metavar="N", help="only the first so many (default: all)")
    _add_running(parser)


def _add_reference(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", help=DATA)
    add("out", help="the file to write, such as imagenet256.safetensors")
    _add_images(parser)
    add("--name", help="what results call it (default: that of the file)")
    add("--extractor", default="inception_v3", metavar="NAME", help=EXTRACTOR)
    add(
        "--keep-features", type=int, default=10_000, metavar="N", help="images whose features are kept (default: 10000)"
    )
    _add_running(parser)


@reporting_errors
def evaluate(arguments: Sequence[str] | None = None) -> int:
    """Measure reconstructions, samples, or what a linear probe sees; make references."""
    given = vars(_parser().parse_args(arguments))
    return RUN[given.pop("verb")](given)


def _reconstruction(given: dict[str, Any]) -> int:
    options = parse_options(given.pop("perceptual_options"), "--perceptual-options")
    names = given.pop("perceptual")
    if "none" in names and len(names) > 1:
        raise ConfigError(f"--perceptual {' '.join(names)}: none stands alone; leave it out, or the others")
    perceptual = [{"type": name, **options} for name in names if name != "none"]
    extractor = None if given["extractor"] == "none" else given["extractor"]

    from aligntok.evaluation.reconstruction import evaluate_reconstruction

    evaluate_reconstruction(**{**given, "perceptual": perceptual, "extractor": extractor})
    return 0


def _generation(given: dict[str, Any]) -> int:
    from aligntok.evaluation.generation import evaluate_generation

    evaluate_generation(**given)
    return 0


def _make_reference(given: dict[str, Any]) -> int:
    from aligntok.evaluation.references import make_reference

    print(f"Reference: {make_reference(given.pop('data'), given.pop('out'), **given)}")
    return 0


def _linear_probe(given: dict[str, Any]) -> int:
    return probing.linear_probe(argparse.Namespace(**given))


RUN = {
    "reconstruction": _reconstruction,
    "generation": _generation,
    "linear-probe": _linear_probe,
    "make-reference": _make_reference,
}
