"""What of an evaluation of pictures against their prompts is computing, and what is waiting for pictures to be read.

    python benchmarks/text_image_share.py --threads 2
    python benchmarks/text_image_share.py --width 1280 --layers 32 --patch 14 --workers 8   # on a GPU

Pictures of --size pixels, smooth noise as PNGs, are measured by a CLIP of random weights, as `aligntok evaluate
text-image --metrics clip` does: processes read and resize, this one computes. Printed are the seconds of a pass over
all of them, and the share in which nothing was there to compute with. Only the first batch's wait is left out, in which
the processes start.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aligntok.device import computing, device
from aligntok.evaluation.text_image.samples import PromptedSamples, PromptSet
from aligntok.evaluation.text_image.scorers import CLIP, CLIPScore
from aligntok.imports import quietly


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--width", type=int, default=768, help="of the model that sees")
    parser.add_argument("--layers", type=int, default=12, help="of it, and of the model that reads")
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def write_pictures(folder: Path, given: argparse.Namespace) -> None:
    """Write the pictures and their prompts, ten words each."""
    lines = []
    for number in range(given.pictures):
        rough = np.random.default_rng(number).integers(0, 255, (given.size // 4, given.size // 4, 3), dtype=np.uint8)
        image = Image.fromarray(rough).resize((given.size, given.size), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
        lines.append(json.dumps({"file": f"{number}.png", "prompt": f"{number} " + "red apples on a table " * 2}))
    (folder / "prompts.jsonl").write_text("\n".join(lines))


def write_model(folder: Path, given: argparse.Namespace) -> None:
    """Write a CLIP of random weights whose tokens are letters."""
    with quietly():
        import transformers
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{each}</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"]
    made = transformers.CLIPTokenizer(vocab={token: place for place, token in enumerate(tokens)}, merges=[])
    made.save_pretrained(folder)
    ends = dict(bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1)
    vision = dict(hidden_size=given.width, intermediate_size=4 * given.width, num_hidden_layers=given.layers)
    vision |= dict(num_attention_heads=given.width // 64, image_size=224, patch_size=given.patch)
    config = transformers.CLIPConfig(
        text_config=dict(vocab_size=len(tokens), num_hidden_layers=given.layers, **ends), vision_config=vision
    )
    transformers.CLIPModel(config).save_pretrained(folder)


def main() -> None:
    given = parse_arguments()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as place:
        pictures, model = Path(place, "pictures"), Path(place, "clip")
        pictures.mkdir()
        write_pictures(pictures, given)
        write_model(model, given)
        samples, scorer = PromptedSamples(pictures, PromptSet(())), CLIPScore(CLIP(model, "clip")).to(device())
        samples.sees = [scorer.see]
        waited = computed = 0.0
        before = None
        for batch in samples.batches(given.batch_size, given.workers):
            there = time.perf_counter()
            waited += 0.0 if before is None else there - before
            with torch.inference_mode(), computing("fp32", whole=True):
                seen = [each.to(device()) for each in batch.seen[0]]
                scorer(seen, [samples.samples[i] for i in batch.places]).cpu()
            before = time.perf_counter()
            computed += before - there
    whole = waited + computed
    shape = f"{given.layers} layers of {given.width}, patch {given.patch}"
    print(
        f"{given.pictures} pictures of {given.size} pixels, {given.workers} reading, {shape}, {given.threads} threads"
    )
    print(f"computing {computed:.2f} s, waiting {waited:.2f} s: {100 * waited / whole:.1f} % of {whole:.2f} s")


if __name__ == "__main__":
    main()
