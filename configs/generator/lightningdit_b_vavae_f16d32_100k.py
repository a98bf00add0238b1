"""LightningDiT-B/1 on VA-VAE f16d32, ImageNet 256, 100K steps: the baseline of the cheap run.

    torchrun --nproc_per_node=8 tools/cache_latents.py checkpoints/vavae-imagenet256-f16d32-dinov2.pt \
        /path/to/imagenet latents/vavae_f16d32 --split train --posterior sample
    torchrun --nproc_per_node=8 tools/train.py configs/generator/lightningdit_b_vavae_f16d32_100k.py \
        --cfg-options data_root=latents/vavae_f16d32

The tokenizer is the published one, a file of hustvl/vavae-imagenet256-f16d32-dinov2 on the Hugging Face hub.
The cache, one for every config on these latents, takes 84 GB in fp32 and 42 GB with --dtype bf16 or fp16.
Our own recipe: the 64-epoch one with a fifth of the parameters, 130 M (100K steps of 1,024 images = 80 epochs, 102.4 M
images seen). Its guidance is that of XL/1, not tuned.
Expected (paper): nothing, since it trains XL/1 only. Not yet run here.
"""

_base_ = ["lightningdit_b_aligntok_f16d32_100k.py"]

tokenizer = "checkpoints/vavae-imagenet256-f16d32-dinov2.pt"
