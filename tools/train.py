#!/usr/bin/env python3
"""Train a tokenizer: the stages of a config, one after the other.

    python tools/train.py configs/aligntok_dinov2_f16d32.py --cfg-options data_root=/data/imagenet
    torchrun --nproc_per_node=8 tools/train.py configs/aligntok_dinov2_f16d32.py --cfg-options data_root=/data/imagenet

The same command started again goes on where it stopped.
"""

from aligntok.cli import train
from aligntok.ends import leave

if __name__ == "__main__":
    leave(train)
