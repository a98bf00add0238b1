"""LightningDiT-XL/1 on VA-VAE f16d64, ImageNet 256, 80K steps (paper, Table 3): the baseline with twice the channels.

    torchrun --nproc_per_node=8 tools/cache_latents.py checkpoints/vavae-imagenet256-f16d64-dinov2-50ep.ckpt \
        /path/to/imagenet latents/vavae_f16d64 --split train --posterior sample
    torchrun --nproc_per_node=8 tools/train.py configs/generator/lightningdit_xl_vavae_f16d64_64ep.py \
        --cfg-options data_root=latents/vavae_f16d64

The tokenizer is the published one, a file of hustvl/va-vae-imagenet256-experimental-variants on the Hugging Face hub.
The cache takes 168 GB in fp32 and 84 GB with --dtype bf16 or fp16.
Paper: about 12 h on 8 H100 (80K steps of 1,024 images = 64 epochs, 81.9 M images seen).
Expected (paper): gFID 12.23 without and 3.20 with guidance in the 30 sampling steps set here (Table 3). Not yet run
here at this size.
"""

_base_ = ["lightningdit_xl_aligntok_f16d64_64ep.py"]

tokenizer = "checkpoints/vavae-imagenet256-f16d64-dinov2-50ep.ckpt"
