"""VA-VAE in small, over the images of the longer AlignTok.

    python tools/train.py configs/small/vavae_longer.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 3,600 steps of 16 images of 32 pixels = 57,600 images seen, 2.3 epochs of 25,000 photographs.
Expected (measured by configs/small/comparison_longer.py): docs/small.md.
"""

_base_ = ["vavae.py"]

stages = _base_.stages
stages[0]["steps"] = 3600
