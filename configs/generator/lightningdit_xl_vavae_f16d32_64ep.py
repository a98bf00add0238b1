"""LightningDiT-XL/1 on VA-VAE f16d32, ImageNet 256, 80K steps (paper, Tables 3 and 4): what AlignTok is held against.

    torchrun --nproc_per_node=8 tools/cache_latents.py checkpoints/vavae-imagenet256-f16d32-dinov2.pt \
        /path/to/imagenet latents/vavae_f16d32 --split train --posterior sample
    torchrun --nproc_per_node=8 tools/train.py configs/generator/lightningdit_xl_vavae_f16d32_64ep.py \
        --cfg-options data_root=latents/vavae_f16d32

The tokenizer is the published one, a file of hustvl/vavae-imagenet256-f16d32-dinov2 on the Hugging Face hub.
The cache, one for every config on these latents, takes 84 GB in fp32 and 42 GB with --dtype bf16 or fp16. It holds a
draw from the posterior, as the published code's does.
Paper: about 12 h on 8 H100 (80K steps of 1,024 images = 64 epochs, 81.9 M images seen).
Expected (paper): gFID 5.14 without and 2.11 with guidance in 250 sampling steps (Table 4), 7.79 and 3.13 in the 30 set
here (Table 3). Not yet run here at this size.
"""

_base_ = ["lightningdit_xl_aligntok_f16d32_64ep.py"]

tokenizer = "checkpoints/vavae-imagenet256-f16d32-dinov2.pt"
