"""AlignTok's stage 1 alone in small, over the whole budget: the encoder stays as it was pretrained.

    python tools/train.py configs/small/aligntok_stage_1_only.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 9,375 steps of 16 images of 32 pixels = 150,000 images seen, 6.0 epochs.
Expected (measured by configs/small/comparison.py, not run yet): docs/small.md.
"""

_base_ = ["aligntok.py"]

stages = _base_.stages[:1]
stages[0]["steps"] = 9375
stages[0]["schedule"] = [dict(type="CosineAnnealingLR", eta_min=1e-5, begin=0, end=9375)]
