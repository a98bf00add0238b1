"""AlignTok in small: EfficientNet-Lite0's features at stride 16, f8d64, 32 pixels, three stages.

    python tools/train.py configs/small/aligntok.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 1,875 + 5,940 + 1,560 steps of 16 images = 150,000 images seen, 6.0 epochs of 25,000 photographs. The
semantic weight, 0.3, is on ratios of groups of 8 images; the paper's is 1, and its budget a hundred times as long.
Expected (measured by configs/small/precheck.py): docs/small.md.
"""

_base_ = ["../_base_/small_f8d64.py"]

stages = [
    dict(
        name="latent_alignment",
        steps=1875,
        trainable=["adapter", "decoder"],
    ),
    dict(
        name="perceptual_alignment",
        steps=5940,
        init_from=dict(stage="latent_alignment", weights="raw"),
        trainable=["encoder", "adapter", "decoder"],
        teacher="start",
        losses=dict(
            semantic=dict(
                type="semantic_preservation",
                weight=0.3,
                adaptive_weight=dict(at="encoder", images=8),
            )
        ),
        schedule=[
            dict(type="LinearLR", start_factor=0.05, begin=0, end=100),
            dict(type="CosineAnnealingLR", eta_min=1e-4, begin=100, end=5940),
        ],
    ),
    dict(
        name="decoder_refinement",
        steps=1560,
        init_from=dict(stage="perceptual_alignment", weights="ema"),
        trainable=["decoder"],
        schedule=[dict(type="CosineAnnealingLR", eta_min=1e-5, begin=0, end=1560)],
    ),
]
