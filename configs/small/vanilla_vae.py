"""Vanilla VAE in small: CNN encoder from random weights, f4d8, 32 pixels, no pretrained encoder anywhere.

    python tools/train.py configs/small/vanilla_vae.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 1,600 steps of 16 images = 25,600 images seen, 1.0 epochs of the 25,000 photographs of Tiny-ImageNet's
50 classes here.
Expected (measured by configs/small/comparison.py): docs/small.md.
"""

_base_ = ["../_base_/small_f4d8.py"]

model = dict(
    encoder=dict(
        type="ldm_cnn",
        ch=32,
        ch_mult=(1, 1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=32,
        norm_groups=8,
    ),
    adapter=dict(type="identity", _delete_=True),
    variational=True,
)
losses = dict(kl=dict(type="kl", weight=1e-6 / (3 * 32 * 32)))  # the convention's 1e-6 stands beside a summed L1

stages = [dict(name="autoencoder", steps=1600)]
