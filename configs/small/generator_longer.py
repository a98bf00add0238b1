"""The generator of the small comparison, trained three times as long: does the order of the tokenizers change?

    python tools/cache_latents.py work_dirs/aligntok tiny_imagenet.zip latents/small --split train --image-size 32
    python tools/train.py configs/small/generator_longer.py --cfg-options data_root=latents/small

Our own recipe: 3,600 steps of 32 images = 115,200 images seen, 4.6 epochs of the 25,000 photographs; a cache of
102 MB. Expected (measured by configs/small/comparison_longer.py): docs/small.md.
"""

_base_ = ["generator.py"]

steps = 3600
checkpoint = dict(every=1200)
