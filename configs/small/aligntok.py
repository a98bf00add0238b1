"""AlignTok."""

_base_ = ["../_base_/small_f8d32.py"]

model = dict(encoder=dict(type="efficientnet_lite0", stride=16))

stages = [
    dict(name="latent_alignment", steps=400, trains=["adapter", "decoder"]),
    dict(
        name="perceptual_alignment",
        steps=1200,
        start=dict(stage="latent_alignment", weights="raw"),
        trains=["encoder", "adapter", "decoder"],
        teacher="start",
        losses=dict(semantic=dict(type="semantic_preservation", weight=1.0, balance=dict(at="encoder"))),
        optimizer=dict(lr=3e-4),
    ),
    dict(
        name="decoder_refinement",
        steps=400,
        start=dict(stage="perceptual_alignment", weights="ema"),
        trains=["decoder"],
    ),
]
