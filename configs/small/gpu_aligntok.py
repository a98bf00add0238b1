"""AlignTok in small on one GPU: EfficientNet-Lite0 at stride 16 on images of 64 pixels, f16d64, three stages.

    python tools/train.py configs/small/gpu_aligntok.py --cfg-options data_root=tiny_imagenet.zip

Our own recipe: 780 + 2,470 + 650 steps of 64 images = 249,600 images seen, 10.0 epochs of 25,000 photographs;
4 x 4 x 64 latents hold a twelfth of an image's numbers. Compiled, bf16.
Expected (measured by configs/small/gpu_comparison.py, not run yet): docs/small.md.
"""

_base_ = ["aligntok.py"]

model = dict(
    encoder=dict(stride=16),
    decoder=dict(ch=64, ch_mult=(1, 1, 2, 2, 4), resolution=64, norm_groups=16),
    downsample_factor=16,
)
precision = "bf16"
compile = True
global_batch_size = 64
data = dict(
    train=dict(image_size=64),
    val=dict(image_size=64),
    workers=8,
)
stages = _base_.stages
stages[0]["steps"] = 780
stages[1]["steps"] = 2470
stages[1]["schedule"][1].update(end=2470)
stages[2]["steps"] = 650
stages[2]["schedule"][0].update(end=650)
