"""VA-VAE in small: the vanilla VAE with its latents held to a frozen EfficientNet-Lite0 (`vf` loss).

    python tools/train.py configs/small/vavae.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 9,375 steps of 16 images of 32 pixels = 150,000 images seen, 6.0 epochs. The teacher is the network that
AlignTok begins with. Margins are 0 and the weight is chosen by the comparison's grid: at the published 0.1 and margins
so small a model was hardly aligned.
Expected (measured by configs/small/comparison.py, one seed so far): docs/small.md.
"""

_base_ = ["vanilla_vae.py"]

teacher = dict(type="efficientnet_lite0", stride=16, downsample_factor=8)
losses = dict(
    vf=dict(
        type="vf",
        latent_dim=64,
        feature_dim=112,
        weight=0.5,
        distance_margin=0.0,
        cosine_margin=0.0,
        adaptive_weight=dict(at="encoder", images=8, max=1e8, reference=["l1", "st_lpips"]),
    )
)
