"""LightningDiT-XL/1 on the 768 channels of a frozen DINOv2-B, ImageNet 256, 100K steps: RAE's manner.

    torchrun --nproc_per_node=8 tools/cache_latents.py work_dirs/rae_dinov2 /path/to/imagenet latents/rae_dinov2 \
        --split train --dtype bf16
    torchrun --nproc_per_node=8 tools/train.py configs/generator/lightningdit_xl_rae_dinov2.py \
        --cfg-options data_root=latents/rae_dinov2

The cache takes 2015 GB in fp32 and 1008 GB with --dtype bf16 or fp16. Without one: data.train.type=images,
data.train.split=train, data.train.image_size=256 and data_root=/path/to/imagenet encode on the fly.
Our own recipe after RAE (arXiv 2510.11690, Sec. 4): uniform times, shifted towards noise by sqrt(m / n), m the latent's
196,608 numbers and n = 4,096; a network wider than the latent (1,152 > 768); 100K steps of 1,024 images = 80 epochs,
102.4 M images seen. What of RAE it leaves out is in docs/baselines.md.
Expected (paper): nothing, since it trains no such generator; RAE's authors name a gFID of 4.28 for a DiT-XL after 80
epochs. Not yet run here.
"""

_base_ = ["../_base_/generator_imagenet.py"]

tokenizer = "work_dirs/rae_dinov2"
generator = dict(in_channels=768)
steps = 100_000
ema = dict(decays=[0.9995], inference=0.9995)

# RAE's time is 1 at noise and is shifted by a > 1; ours is 1 at data, where the same shift is 1 / a.
towards_noise = (4096 / (768 * 16 * 16)) ** 0.5
transport = dict(times="uniform", shift=towards_noise, direction_weight=0.0)
sampling = dict(steps=50, shift=towards_noise, cfg_scale=1.0, cfg_interval=None, cfg_channels=None)
del towards_noise
