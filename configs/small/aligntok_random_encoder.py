"""AlignTok's control in small: the same three stages, the encoder's weights random.

Trained by configs/small/comparison.py; what it lacks of configs/small/aligntok.py is the pretraining alone.
Expected: docs/small.md.
"""

_base_ = ["aligntok.py"]

model = dict(encoder=dict(pretrained=False))
