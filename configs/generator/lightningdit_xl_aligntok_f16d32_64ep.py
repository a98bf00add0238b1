"""LightningDiT-XL/1 on AlignTok f16d32, ImageNet 256, 80K steps (paper, Tables 3 and 4): the default generator.

    torchrun --nproc_per_node=8 tools/cache_latents.py work_dirs/aligntok_dinov2_f16d32 /path/to/imagenet \
        latents/aligntok_f16d32 --split train
    torchrun --nproc_per_node=8 tools/train.py configs/generator/lightningdit_xl_aligntok_f16d32_64ep.py \
        --cfg-options data_root=latents/aligntok_f16d32

The cache, one for every config on these latents, takes 84 GB in fp32 and 42 GB with --dtype bf16 or fp16.
Paper: about 12 h on 8 H100 (80K steps of 1,024 images = 64 epochs, 81.9 M images seen).
Expected (paper): gFID 3.71 without and 1.90 with guidance in 250 sampling steps (Table 4), 4.05 and 2.17 in the 30 set
here (Table 3). Not yet run here at this size.
"""

_base_ = ["../_base_/generator_imagenet.py"]

tokenizer = "work_dirs/aligntok_dinov2_f16d32"
generator = dict(size="XL")
steps = 80_000
sampling = dict(cfg_scale=10.0, cfg_interval=(0.10, 1.0))  # convention: VA-VAE's for 64 epochs
