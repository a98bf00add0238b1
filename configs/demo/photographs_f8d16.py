"""The demo: AlignTok in miniature, EfficientNet-Lite0, f8d16, 64-pixel crops of 27 photographs.

    python tools/make_demo_data.py work_dirs/demo/photographs
    python tools/train.py configs/demo/photographs_f8d16.py --cfg-options data_root=work_dirs/demo/photographs

Two CPU cores, some minutes (`make demo` runs both lines). 6,400 crops seen, 237 epochs of so few photographs: enough
to see the stages work, not enough for a tokenizer of any use. Our own recipe, not the paper's.
"""

_base_ = ["tiny_imagenet_f8d16.py"]

work_dir = "work_dirs/demo/run"
data = dict(
    train=dict(split="train", image_size=64, short_side=160),
    val=dict(split="val", image_size=160),
)
validation = dict(num_images=None, batch_size=2)
checkpoint = dict(every=200)
log = dict(every=25, pictures_every=None, pictures=6)

stages = _base_.stages
stages[0]["steps"] = 250
stages[0]["losses"] = dict(gan=dict(start_step=200))
stages[1]["steps"] = 350
stages[2]["steps"] = 200
