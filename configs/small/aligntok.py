"""AlignTok in small: EfficientNet-Lite0's features at stride 16, f8d32, 32 pixels, three stages.

    python tools/train.py configs/small/aligntok.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 400 + 1,600 + 400 steps of 16 images = 38,400 images seen, 1.5 epochs of 25,000 photographs.
Expected (measured by configs/small/comparison.py): docs/small.md.
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
