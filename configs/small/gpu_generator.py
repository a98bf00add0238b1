"""The generator of the comparison on one GPU: LightningDiT of 12 blocks on f16d64 latents of 64-pixel images.

    python tools/cache_latents.py work_dirs/gpu_aligntok tiny_imagenet.zip latents/gpu --split train --image-size 64
    python tools/train.py configs/small/gpu_generator.py --cfg-options data_root=latents/gpu

Our own recipe: 2,344 steps of 256 images = 600,064 images seen, 24.0 epochs of the 25,000 photographs; a cache of
205 MB. Compiled, bf16.
Expected (measured by configs/small/gpu_comparison.py, not run yet): docs/small.md.
"""

_base_ = ["generator.py"]

generator = dict(depth=12)
steps = 2344
global_batch_size = 256
precision = "bf16"
compile = True
checkpoint = dict(every=586)
