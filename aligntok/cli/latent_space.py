"""``analyze_latents``: tokenizers' latent spaces beside one another and a reference encoder's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aligntok.cli.arguments import image_size, parse_options, reporting_errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="analyze_latents",
        description="Measure and show the latent spaces of tokenizers on the same images, beside a pretrained "
        "encoder's: CKNNA, spatial variance, total variation, density on a t-SNE, PCA pictures. Under torchrun every "
        "process takes its share.",
    )
    add = parser.add_argument
    add("tokenizers", nargs="+", metavar="TOKENIZER", help="work folders or stages, saved tokenizers, hub ids, ...")
    add("data", metavar="DATA", help="images: a folder, a zip, shards, parquet files, or hf://owner/name")
    add("--encoder", default="dinov2", metavar="NAME", help="reference: an encoder, or timm:MODEL, open_clip:MODEL")
    add("--encoder-options", nargs="+", default=[], metavar="KEY=VALUE", help="of the encoder, e.g. size=base")
    add("--out", help="the folder to write (default: TOKENIZER/evaluation/latent_space)")
    add("--names", nargs="+", metavar="NAME", help="of the tokenizers in tables (default: from their paths)")
    add("--image-size", type=image_size, default=(256, 256), metavar="N or HxW", help="pixels (default: 256)")
    add("--split", help="of the data: a subfolder, or a word in the names of its files")
    add("--num", "--num-images", type=int, default=10_000, metavar="N", help="images, evenly spread (default: 10000)")
    add("--weights", choices=["raw", "ema"], help="of work folders (default: ema where it is kept)")
    add("--topk", type=int, default=10, metavar="K", help="neighbours of CKNNA (default: 10)")
    add("--tsne-points", type=int, default=5000, metavar="N", help="latents in a t-SNE, one an image (default: 5000)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="S", help="of the t-SNEs (default: 0 1 2)")
    add("--pca-images", type=int, default=6, metavar="N", help="rows of the PCA picture (default: 6)")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32", help="of the models' arithmetic")
    add("--batch-size", type=int, default=32, metavar="N", help="images at once, of one process (default: 32)")
    add("--workers", type=int, default=2, metavar="N", help="processes that read images (default: 2)")
    return parser


@reporting_errors
def analyze_latents(arguments: Sequence[str] | None = None) -> int:
    """Compare the latent spaces of tokenizers with one another and a reference encoder's."""
    given = vars(_parser().parse_args(arguments))
    options = parse_options(given.pop("encoder_options"), "--encoder-options")
    word = given.pop("encoder")

    from aligntok.evaluation.latent_analysis import analyze_latents as analyze
    from aligntok.evaluation.latent_models import encoder_config

    analyze(**given, encoder={**encoder_config(word), **options})
    return 0
