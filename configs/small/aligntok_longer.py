"""AlignTok in small with three times the steps of stage 2: does its reconstruction catch up?

    python tools/train.py configs/small/aligntok_longer.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 300 + 3,000 + 300 steps of 16 images of 32 pixels = 57,600 images seen, 2.3 epochs of 25,000
photographs. Expected (measured by configs/small/comparison_longer.py): docs/small.md.
"""

_base_ = ["aligntok.py"]

stages = _base_.stages
stages[1]["steps"] = 3000
