"""AlignTok in small with the paper's semantic weight, 1.

    python tools/train.py configs/small/aligntok_semantic_weight_1.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 1,875 + 5,940 + 1,560 steps of 16 images = 150,000 images seen, 6.0 epochs. Nothing else differs from
configs/small/aligntok.py.
Expected (measured by configs/small/comparison.py, not run yet): docs/small.md.
"""

_base_ = ["aligntok.py"]

stages = _base_.stages
stages[1]["losses"]["semantic"]["weight"] = 1.0
