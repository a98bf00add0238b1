"""VA-VAE in small: the vanilla VAE with its latents held to a frozen EfficientNet-Lite0 (`vf` loss).

    python tools/train.py configs/small/vavae.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 1,600 steps of 16 images of 32 pixels = 25,600 images seen, 1.0 epochs; the loss's weight, margins and
bound are the published ones.
Expected (measured by configs/small/comparison.py): docs/small.md.
"""

_base_ = ["vanilla_vae.py"]

teacher = dict(type="efficientnet_lite0", stride=8, downsample_factor=4)
losses = dict(
    vf=dict(
        type="vf",
        latent_dim=8,
        feature_dim=40,
        weight=0.1,
        distance_margin=0.25,
        cosine_margin=0.5,
        adaptive_weight=dict(at="encoder", max=1e8, reference=["l1", "st_lpips"]),
    )
)
