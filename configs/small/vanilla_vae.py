"""Vanilla VAE in small: the same encoder as AlignTok's, from random weights, with a KL term; f8d64, 32 pixels.

    python tools/train.py configs/small/vanilla_vae.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 9,375 steps of 16 images = 150,000 images seen, 6.0 epochs of the 25,000 photographs of Tiny-ImageNet's
50 classes here.
Expected (measured by configs/small/precheck.py): docs/small.md.
"""

_base_ = ["../_base_/small_f8d64.py"]

model = dict(encoder=dict(pretrained=False), variational=True)
losses = dict(kl=dict(type="kl", weight=1e-6 / (3 * 32 * 32)))  # the convention's 1e-6 stands beside a summed L1

stages = [
    dict(
        name="autoencoder",
        steps=9375,
        schedule=[
            dict(type="LinearLR", start_factor=0.05, begin=0, end=100),
            dict(type="CosineAnnealingLR", eta_min=1e-5, begin=100, end=9375),
        ],
    )
]
