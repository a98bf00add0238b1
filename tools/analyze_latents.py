#!/usr/bin/env python3
"""Compare the latent spaces of tokenizers on the same images, with one another and with a pretrained encoder's.

    python tools/analyze_latents.py work_dirs/my_run /data/imagenet --split val
    python tools/analyze_latents.py work_dirs/a work_dirs/b work_dirs/c /data/imagenet --split val --encoder mae
    torchrun --nproc_per_node=8 tools/analyze_latents.py my_tokenizer /data/imagenet --split val --tsne-points 10000

CKNNA, spatial variance, total variation, and on t-SNEs of latents the density's CV, Gini coefficient and normalised
entropy, in one table, and how far each is from the encoder's; PCA pictures side by side. docs/latent_space.md defines
them.
"""

from aligntok.cli import analyze_latents
from aligntok.ends import leave

if __name__ == "__main__":
    leave(analyze_latents)
