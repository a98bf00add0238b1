"""The demo: AlignTok in miniature, f8d16, 64-pixel crops of 27 photographs; then a small LightningDiT on its latents.

    python tools/make_demo_data.py work_dirs/demo/photographs --crops 6
    python tools/train.py configs/demo/photographs_f8d16.py --cfg-options data_root=work_dirs/demo/photographs
    python tools/sample.py work_dirs/demo/run --num-samples 54 --labels balanced --out work_dirs/demo/samples \
        --real-images work_dirs/demo/photographs --split crops

Two CPU cores, a quarter of an hour (`make demo` runs these lines). Our own recipe, not the paper's, EfficientNet-Lite0
with stride-8 features: 2,400 steps of 4 crops for the tokenizer, then 1,000 of 32 latents, of 972 crops and their
mirrored copies, for the generator, whose classes are the photographs. 41,600 crops seen, 388.5 epochs of so few.
Enough to see everything work, not enough for a tokenizer or a generator of any use.
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
    nominal_images=27,
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

generation = dict(
    generator=dict(
        type="lightning_dit",
        hidden_size=192,
        depth=6,
        num_heads=3,
        input_size=8,
        in_channels=16,
    ),
    latent_cache=dict(split="crops", image_size=64, workers=1),
    steps=1000,
    global_batch_size=32,
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
    schedule=[
        dict(type="LinearLR", start_factor=0.01, begin=0, end=50),
        dict(type="CosineAnnealingLR", eta_min=1e-5, begin=50, end=1000),
    ],
    ema=dict(sigma_rel=[0.10], decays=[], inference=0.10),
    sampling=dict(steps=30, cfg_scale=2.0),
    data=dict(nominal_images=972),
    checkpoint=dict(every=250),
    log=dict(every=50, pictures=27),
)
