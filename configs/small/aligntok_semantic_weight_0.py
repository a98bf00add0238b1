"""AlignTok in small without semantic preservation: stage 2 trains the encoder for reconstruction alone.

    python tools/train.py configs/small/aligntok_semantic_weight_0.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 1,875 + 5,940 + 1,560 steps of 16 images = 150,000 images seen, 6.0 epochs. Nothing else differs from
configs/small/aligntok.py.
Expected (measured by configs/small/comparison.py, not run yet): docs/small.md.
"""

_base_ = ["aligntok.py"]

stages = _base_.stages
stages[1]["losses"] = dict(semantic=None)
stages[1]["teacher"] = None
