"""AlignTok in small: EfficientNet-Lite0's features at stride 8, f4d8, 32 pixels, three stages.

    python tools/train.py configs/small/aligntok.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 300 + 1,000 + 300 steps of 16 images = 25,600 images seen, 1.0 epochs of 25,000 photographs.
Expected (measured by configs/small/comparison.py): docs/small.md.
"""

_base_ = ["../_base_/small_f4d8.py"]

model = dict(encoder=dict(type="efficientnet_lite0", stride=8))

stages = [
    dict(name="latent_alignment", steps=300, trainable=["adapter", "decoder"]),
    dict(
        name="perceptual_alignment",
        steps=1000,
        init_from=dict(stage="latent_alignment", weights="raw"),
        trainable=["encoder", "adapter", "decoder"],
        teacher="start",
        losses=dict(semantic=dict(type="semantic_preservation", weight=0.2, adaptive_weight=dict(at="encoder"))),
    ),
    dict(
        name="decoder_refinement",
        steps=300,
        init_from=dict(stage="perceptual_alignment", weights="ema"),
        trainable=["decoder"],
    ),
]
