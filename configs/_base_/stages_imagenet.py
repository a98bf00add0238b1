"""The three stages on ImageNet (paper, Sec. 3.2 and App. A): 120K + 220K + 100K steps = 6 + 11 + 5 epochs."""

_base_ = ["./losses.py"]

# The optimiser is VA-VAE's (convention): Adam(0.5, 0.9) on both sides, constant learning rate.
optimizer = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9))
discriminator_optimizer = dict(type="Adam", lr=1e-4, betas=(0.5, 0.9))
spike_factor = 30.0  # ours: a step whose gradients are so many times the usual is left out
ema = dict(sigma_rel=[0.05, 0.10], inference=0.05)  # EDM2's profile is the paper's; the widths are our choice

stages = [
    dict(
        name="latent_alignment",  # the encoder stays as it was pretrained
        steps=120_000,
        trainable=["adapter", "decoder"],
        losses=dict(gan=dict(start_step=5_000)),
    ),
    dict(
        name="perceptual_alignment",  # everything trains, held to the latents of the stage before
        steps=220_000,
        init_from=dict(stage="latent_alignment", weights="raw"),
        trainable=["encoder", "adapter", "decoder"],
        teacher="start",
        losses=dict(
            semantic=dict(
                type="semantic_preservation",
                distance="l2",
                on="latents",
                weight=1.0,
                adaptive_weight=dict(at="encoder", images=8, max=1e8 / (3 * 256 * 256)),
            )
        ),
        optimizer=dict(lr=1e-5),
        discriminator_optimizer=dict(lr=1e-5),
    ),
    dict(
        name="decoder_refinement",  # the latent space is fixed, at its EMA weights
        steps=100_000,
        init_from=dict(stage="perceptual_alignment", weights="ema"),
        trainable=["decoder"],
    ),
]
