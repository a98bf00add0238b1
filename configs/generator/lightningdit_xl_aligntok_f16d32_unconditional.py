"""LightningDiT-XL/1 without classes on AlignTok f16d32, ImageNet 256, 80K steps (paper, Sec. 4.2.2 and Table 3).

    torchrun --nproc_per_node=8 tools/cache_latents.py work_dirs/aligntok_dinov2_f16d32 /path/to/imagenet \
        latents/aligntok_f16d32 --split train
    torchrun --nproc_per_node=8 tools/train.py configs/generator/lightningdit_xl_aligntok_f16d32_unconditional.py \
        --cfg-options data_root=latents/aligntok_f16d32

The cache, one for every config on these latents, takes 84 GB in fp32 and 42 GB with --dtype bf16 or fp16.
Paper: about 12 h on 8 H100 (80K steps of 1,024 images = 64 epochs, 81.9 M images seen).
Expected (paper): gFID 11.80 in the 30 sampling steps set here (Table 3). Not yet run here at this size.
"""

_base_ = ["lightningdit_xl_aligntok_f16d32_64ep.py"]

generator = dict(num_classes=1, class_dropout_prob=0.0)  # one class and no null class, so there is nothing to guide by
sampling = dict(cfg_scale=1.0, cfg_interval=None, cfg_channels=None)
