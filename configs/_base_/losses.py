"""L_rec of the paper's Eq. 1; lambda_p = 1 and lambda_GAN = 0.5 are VA-VAE's convention, which the paper follows."""

losses = dict(
    l1=dict(type="l1", weight=1.0),
    lpips=dict(type="lpips", weight=1.0),
    gan=dict(type="gan", kind="hinge", weight=0.5, adaptive_weight=dict(at="decoder", max=1e4)),
)
