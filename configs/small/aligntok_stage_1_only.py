"""AlignTok's stage 1 alone in small, over the whole budget: adapter and decoder on an encoder that stays as it was.

Trained by configs/small/comparison.py: 2,400 steps of 16 images = 38,400 images seen. Expected: docs/small.md.
"""

_base_ = ["aligntok.py"]

stages = _base_.stages[:1]
stages[0]["steps"] = 2400
