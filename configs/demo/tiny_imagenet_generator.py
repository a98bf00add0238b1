"""The small generator: LightningDiT on the latents of tiny_imagenet_f8d16, 50 classes, 64 pixels.

    python tools/cache_latents.py work_dirs/tiny_imagenet_f8d16 tiny_imagenet.zip latents/tiny \
        --split train --image-size 64
    python tools/train.py configs/demo/tiny_imagenet_generator.py --cfg-options data_root=latents/tiny
    python tools/sample.py work_dirs/tiny_imagenet_generator --num-samples 64 --cfg-scale 2.5

Two CPU cores, one to two hours, after an hour for the tokenizer. Our own recipe, not the paper's: 5,000 steps of 32
images = 160,000 images seen, 6.4 epochs of the 25,000 photographs; a cache of 205 MB.
Expected (measured by that command): pictures and numbers of this run are in docs/generation.md.
"""

_base_ = ["../_base_/runtime.py"]

generator = dict(
    type="lightning_dit",
    hidden_size=256,
    depth=8,
    num_heads=4,
    patch_size=1,
    input_size=8,
    in_channels=16,
)
steps = 5000
global_batch_size = 32
optimizer = dict(type="AdamW", lr=5e-4, betas=(0.9, 0.95), weight_decay=0.0)
schedule = [dict(type="LinearLR", start_factor=0.01, begin=0, end=200)]
clip_grad_norm = 1.0
ema = dict(sigma_rel=[0.05, 0.10], decays=[], inference=0.05)
transport = dict(times="logit_normal")
sampling = dict(steps=50, sampler="euler", cfg_scale=2.5)
data = dict(train=dict(type="latents"), nominal_images=25_000)
checkpoint = dict(every=500)
log = dict(every=50, pictures=25, pictures_every=1000)
