"""L_rec of the paper's Eq. 1; lambda_p = 1 and lambda_GAN = 0.5 are VA-VAE's convention, which the paper follows.

So are ratios of 8 images, a GPU's share there, and their bound: 1e4 of losses that are sums over an image's numbers,
which ours are means of.
"""

losses = dict(
    l1=dict(type="l1", weight=1.0),
    lpips=dict(type="lpips", weight=1.0),
    gan=dict(
        type="gan",
        kind="hinge",
        weight=0.5,
        adaptive_weight=dict(at="decoder", images=8, max=1e4 / (3 * 256 * 256)),
    ),
)
