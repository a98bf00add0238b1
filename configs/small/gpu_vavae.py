"""VA-VAE in small on one GPU: the vanilla VAE of f16d64 at 64 pixels, held to a frozen EfficientNet-Lite0.

    python tools/train.py configs/small/gpu_vavae.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 3,900 steps of 64 images = 249,600 images seen, 10.0 epochs of 25,000 photographs. Compiled, bf16.
Expected (measured by configs/small/gpu_comparison.py, not run yet): docs/small.md.
"""

_base_ = ["gpu_vanilla_vae.py"]

teacher = dict(type="efficientnet_lite0", stride=16, downsample_factor=16)
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
