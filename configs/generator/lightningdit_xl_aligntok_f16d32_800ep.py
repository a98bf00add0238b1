"""LightningDiT-XL/1 with QKNorm on AlignTok f16d32, ImageNet 256, 1M steps (paper, Table 4): the long run.

    torchrun --nproc_per_node=8 tools/cache_latents.py work_dirs/aligntok_dinov2_f16d32 /path/to/imagenet \
        latents/aligntok_f16d32 --split train
    torchrun --nproc_per_node=8 tools/train.py configs/generator/lightningdit_xl_aligntok_f16d32_800ep.py \
        --cfg-options data_root=latents/aligntok_f16d32

The cache, one for every config on these latents, takes 84 GB in fp32 and 42 GB with --dtype bf16 or fp16.
Paper: time not stated; 80K steps take it 12 h on 8 H100 (1M steps of 1,024 images = 799 epochs, which it rounds to 800;
1,024 M images seen).
Expected (paper): gFID 2.04 without and 1.37 with guidance in 250 sampling steps (Table 4). Not yet run here at this
size.
"""

_base_ = ["lightningdit_xl_aligntok_f16d32_64ep.py"]

generator = dict(use_qknorm=True)  # paper: from the first step of every run of over 200K steps, against loss spikes
steps = 1_000_000  # VA-VAE's authors went over to uniform times at 600K; the paper mentions none of it, nor do we
sampling = dict(cfg_scale=6.7, cfg_interval=(0.125, 1.0))  # convention: VA-VAE's for 800 epochs
