"""AlignTok without the semantic preservation loss in small: stage 2 trains the encoder for reconstruction alone.

Trained by configs/small/comparison.py; nothing else differs from configs/small/aligntok.py. Expected: docs/small.md.
"""

_base_ = ["aligntok.py"]

stages = _base_.stages
stages[1]["losses"] = dict(semantic=None)
stages[1]["teacher"] = None
