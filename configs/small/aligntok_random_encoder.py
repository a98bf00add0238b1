"""AlignTok's control in small: the same three stages, but the encoder's weights are random at first.

    python tools/train.py configs/small/aligntok_random_encoder.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 1,875 + 5,940 + 1,560 steps of 16 images = 150,000 images seen, 6.0 epochs. Against
configs/small/aligntok.py it lacks the pretraining, and nothing else.
Expected (measured by configs/small/comparison.py, one seed so far): docs/small.md.
"""

_base_ = ["aligntok.py"]

model = dict(encoder=dict(pretrained=False))
