"""The generator of the small comparison: LightningDiT, a token a position, on f8d64 latents of 32-pixel images.

    python tools/cache_latents.py work_dirs/aligntok tiny_imagenet.zip latents/small --split train --image-size 32
    python tools/train.py configs/small/generator.py --cfg-options data_root=latents/small

configs/small/comparison.py trains it on the latents of every tokenizer; alone it takes those of any of them. Our own
recipe: 4,000 steps of 64 images = 256,000 images seen, 10.2 epochs of the 25,000 photographs; a cache of 205 MB.
Expected (measured by configs/small/comparison.py, one seed so far): docs/small.md.
"""

_base_ = ["../_base_/runtime.py"]

generator = dict(
    type="lightning_dit",
    hidden_size=192,
    depth=6,
    num_heads=3,
    patch_size=1,
    input_size=4,
    in_channels=64,
)
steps = 4000
global_batch_size = 64
precision = "auto"
optimizer = dict(type="AdamW", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
schedule = [dict(type="LinearLR", start_factor=0.01, begin=0, end=100)]
clip_grad_norm = 1.0
ema = dict(sigma_rel=[0.05, 0.10], decays=[], inference=0.10)
transport = dict(times="logit_normal")
sampling = dict(steps=20, sampler="euler")
data = dict(train=dict(type="latents"), nominal_images=25_000)
checkpoint = dict(every=1000)
log = dict(every=50, pictures=50, pictures_every=None)
