"""LightningDiT-XL/1 on AlignTok f16d64, ImageNet 256, 80K steps (paper, Table 3): twice the channels.

    torchrun --nproc_per_node=8 tools/cache_latents.py work_dirs/aligntok_dinov2_f16d64 /path/to/imagenet \
        latents/aligntok_f16d64 --split train
    torchrun --nproc_per_node=8 tools/train.py configs/generator/lightningdit_xl_aligntok_f16d64_64ep.py \
        --cfg-options data_root=latents/aligntok_f16d64

The cache takes 168 GB in fp32 and 84 GB with --dtype bf16 or fp16.
Paper: about 12 h on 8 H100 (80K steps of 1,024 images = 64 epochs, 81.9 M images seen).
Expected (paper): gFID 5.24 without and 2.34 with guidance in the 30 sampling steps set here (Table 3). Not yet run here
at this size. No guidance scale is known for 64 channels: it is left at that for 32.
"""

_base_ = ["lightningdit_xl_aligntok_f16d32_64ep.py"]

tokenizer = "work_dirs/aligntok_dinov2_f16d64"
generator = dict(in_channels=64)
