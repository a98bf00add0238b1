#!/usr/bin/env python3
"""Measure a tokenizer's reconstructions, samples of a generator, or what a linear probe sees in the latents.

    python tools/evaluate.py reconstruction work_dirs/aligntok_dinov2_f16d32 /data/imagenet --split val
    python tools/evaluate.py make-reference /data/imagenet imagenet256.safetensors --split train
    python tools/evaluate.py generation work_dirs/my_generator/samples/euler-30 --reference imagenet256.safetensors
    python tools/evaluate.py text-image work_dirs/my_generator/samples/mine --metrics clip --weights clip=/models/clip
    torchrun --nproc_per_node=8 tools/evaluate.py linear-probe work_dirs/aligntok_dinov2_f16d32 /data/imagenet

Only features of Inception-v3 make an FID; those of another extractor make an FD that carries its name.
"""

from aligntok.cli import evaluate
from aligntok.ends import leave

if __name__ == "__main__":
    leave(evaluate)
