"""``evaluate linear-probe``: its options, and what runs it."""

from __future__ import annotations

import argparse

from aligntok.cli.arguments import image_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a linear probe."""
    add = parser.add_argument
    add("tokenizer", help="a work folder or stage, a saved tokenizer, a published checkpoint, a hub id")
    add("data", help="images with classes: a folder, a zip, shards, parquet files, or hf://owner/name")
    add("--out", help="the folder to write (default: TOKENIZER/evaluation/linear_probe)")
    add("--image-size", type=image_size, default=(256, 256), metavar="N or HxW", help="pixels (default: 256)")
    add("--train-split", default="train", help="the images to train on (default: train)")
    add("--val-split", default="val", help="the images to measure on (default: val)")
    add("--num-train", type=int, metavar="N", help="only so many, evenly spread (default: all)")
    add("--num-val", type=int, metavar="N", help="only so many, evenly spread (default: all)")
    add("--weights", choices=["raw", "ema"], help="of a work folder (default: ema where it is kept)")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32", help="of the tokenizer's arithmetic")
    add("--encode-batch-size", type=int, default=32, metavar="N", help="images encoded at once (default: 32)")
    add("--workers", type=int, default=2, metavar="N", help="processes that read images (default: 2)")
    add("--memory-gb", type=float, default=16.0, metavar="GB", help="for features, of one process (default: 16)")

    add = parser.add_argument_group("probe (defaults: the paper's)").add_argument
    add("--epochs", type=int, default=3, metavar="N", help="over the training images (default: 3)")
    add("--lr", type=float, default=1e-3, help="of Adam, constant (default: 1e-3)")
    add("--batch-size", type=int, default=256, metavar="N", help="images of a step, all processes (default: 256)")
    add("--seed", type=int, default=0, help="of the order and the first weights (default: 0)")
    add("--pool", action="store_true", help="means over positions instead of whole latents")
    add("--standardize", action="store_true", help="features of mean 0 and deviation 1 over the training images")


def linear_probe(given: argparse.Namespace) -> int:
    """Run the probe that the options ask for."""
    from aligntok.evaluation.linear_probe import linear_probe as probe

    options = {name: value for name, value in vars(given).items() if name != "verb"}
    probe(options.pop("tokenizer"), options.pop("data"), options.pop("out"), **options)
    return 0
