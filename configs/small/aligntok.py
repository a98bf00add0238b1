"""AlignTok in small: EfficientNet-Lite0's features at stride 16, f8d32, three stages.

Trained by configs/small/comparison.py. Our own recipe: 400 + 1,600 + 400 steps of 16 images of 32 pixels = 38,400
images seen. Expected: docs/small.md.
"""

_base_ = ["../_base_/small_f8d32.py"]

model = dict(encoder=dict(type="efficientnet_lite0", stride=16))

stages = [
    dict(name="latent_alignment", steps=400, trains=["adapter", "decoder"]),
    dict(
        name="perceptual_alignment",
        steps=1600,
        start=dict(stage="latent_alignment", weights="raw"),
        trains=["encoder", "adapter", "decoder"],
        teacher="start",
        losses=dict(semantic=dict(type="semantic_preservation", weight=0.2, balance=dict(at="encoder"))),
    ),
    dict(
        name="decoder_refinement",
        steps=400,
        start=dict(stage="perceptual_alignment", weights="ema"),
        trains=["decoder"],
    ),
]
