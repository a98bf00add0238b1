"""Vanilla VAE in small on one GPU: AlignTok's encoder from random weights, with a KL term; f16d64, 64 pixels.

    python tools/train.py configs/small/gpu_vanilla_vae.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 3,900 steps of 64 images = 249,600 images seen, 10.0 epochs of 25,000 photographs. Compiled, bf16.
Expected (measured by configs/small/gpu_comparison.py, not run yet): docs/small.md.
"""

_base_ = ["vanilla_vae.py"]

model = dict(
    encoder=dict(stride=16),
    decoder=dict(ch=64, ch_mult=(1, 1, 2, 2, 4), resolution=64, norm_groups=16),
    downsample_factor=16,
)
losses = dict(kl=dict(weight=1e-6 / (3 * 64 * 64)))
precision = "bf16"
compile = True
global_batch_size = 64
data = dict(
    train=dict(image_size=64),
    val=dict(image_size=64),
    workers=8,
)
stages = _base_.stages
stages[0]["steps"] = 3900
stages[0]["schedule"][1].update(end=3900)
