"""The small comparison, longer: AlignTok and VA-VAE at 2.25 times the images, the generator at three times.

    python tools/compare.py configs/small/comparison_longer.py --cfg-options data_root=tiny_imagenet.zip

Tiny-ImageNet at 32 pixels, 50 classes. Each tokenizer sees 57,600 images and each generator 115,200.
Expected: docs/small.md.
"""

_base_ = ["comparison.py"]

tokenizers = dict(_delete_=True, vavae="vavae_longer.py", aligntok="aligntok_longer.py")
generator = "generator_longer.py"
seeds = [0]
samples = dict(every=1200)
