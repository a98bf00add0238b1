"""Vanilla VAE in small, with so much KL that it reconstructs no better than AlignTok: does blur alone help a generator?

    python tools/train.py configs/small/vanilla_vae_equal_rfd.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 9,375 steps of 16 images of 32 pixels = 150,000 images seen, 6.0 epochs. Nothing else differs from
configs/small/vanilla_vae.py: a blurred latent is easier to model, whatever it means.
Expected (measured by configs/small/comparison.py, one seed so far): docs/small.md.
"""

_base_ = ["vanilla_vae.py"]

losses = dict(kl=dict(weight=3e-1 / (3 * 32 * 32)))
