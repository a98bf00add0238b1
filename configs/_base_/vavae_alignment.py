"""VA-VAE's loss: latents, through a learned 1 x 1 projection, stay near a frozen DINOv2-L's features.

Convention: weight, margins and bound are those of the published configs. Its weight is set against L1 and LPIPS,
without the adversarial loss, at the encoder's last layer.
"""

_base_ = ["./vavae_f16.py"]

teacher = dict(type="dinov2")
losses = dict(
    vf=dict(
        type="vf",
        latent_dim=32,
        feature_dim=1024,
        weight=0.1,
        distance_margin=0.25,
        cosine_margin=0.5,
        adaptive_weight=dict(at="encoder", images=8, max=1e8, reference=["l1", "lpips"]),
    )
)
