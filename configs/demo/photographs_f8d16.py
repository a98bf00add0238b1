"""The demo: AlignTok in miniature, EfficientNet-Lite0, f8d16, 64-pixel crops of 27 photographs.

    python tools/make_demo_data.py work_dirs/demo/photographs
    python tools/train.py configs/demo/photographs_f8d16.py --cfg-options data_root=work_dirs/demo/photographs

Two CPU cores, some minutes (`make demo` runs both lines). Our own recipe, not the paper's, with stride-8 features:
2,400 steps of 4 crops = 9,600 images seen, 356 epochs of so few photographs. Enough to see the stages work, not enough
for a tokenizer of any use.
Expected (measured by `make demo`): held-out PSNR 15.9 dB after stage 1, 19.9 after stage 2, 20.1 after stage 3.
"""

_base_ = ["tiny_imagenet_f8d16.py"]

ema = dict(inference=0.10)
work_dir = "work_dirs/demo/run"
model = dict(encoder=dict(stride=8))
global_batch_size = 4
data = dict(
    train=dict(split="train", image_size=64, short_side=160),
    val=dict(split="val", image_size=160, short_side=160),
    num_images=27,
)
validation = dict(num_images=None, batch_size=2)
checkpoint = dict(every=200)
log = dict(every=50, pictures_every=None, pictures=4)

stages = _base_.stages
stages[0]["steps"] = 300
stages[0]["losses"] = dict(gan=dict(start_step=200))
stages[1]["steps"] = 1500
stages[1]["losses"]["semantic"]["weight"] = 0.2
stages[2]["steps"] = 600
