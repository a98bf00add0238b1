"""The demo: AlignTok in miniature, f8d16, 64-pixel crops of 30 photographs; then a small LightningDiT on its latents.

    python tools/make_demo_data.py work_dirs/demo/photographs --crops 6
    python tools/train.py configs/demo/photographs_f8d16.py --cfg-options data_root=work_dirs/demo/photographs
    python tools/sample.py work_dirs/demo/run --num-samples 60 --labels balanced --out work_dirs/demo/samples \
        --real-images work_dirs/demo/photographs --split crops

Two CPU cores, 18 minutes (`make demo` runs these lines). Our own recipe, not the paper's: EfficientNet-Lite0
with stride-8 features, and a linear path beside it and beside the decoder, by which so short a training comes to
reconstruct. 2,850 steps of 8 crops for the tokenizer, then 800 of 32 latents, of 1,080 crops and their mirrored
copies, for the generator, whose classes are the photographs. 48,400 crops seen, 783.7 epochs of so few.
Enough to see everything work, not enough for a generator of any use.
Expected (measured by `make demo`): held-out PSNR 18.45 dB after stage 1, 29.09 after stage 2, 29.11 after stage 3; a
linear code of as many numbers has 28.66 (`benchmarks/pca_code.py`).
"""

_base_ = ["tiny_imagenet_f8d16.py"]

ema = dict(inference=0.10)
work_dir = "work_dirs/demo/run"
model = dict(
    encoder=dict(stride=8, linear_path=True),
    adapter=dict(_delete_=True, type="linear"),
    decoder=dict(ch=8, linear_path=True),
)
losses = dict(st_lpips=dict(weight=0.02), gan=dict(weight=0.01))
optimizer = dict(lr=3e-3)
global_batch_size = 8
data = dict(
    train=dict(split="train", image_size=64, short_side=160),
    val=dict(split="val", image_size=160, short_side=160),
    nominal_images=30,
)
validation = dict(num_images=None, batch_size=2)
checkpoint = dict(every=200)
log = dict(every=50, pictures_every=None, pictures=4)

stages = _base_.stages
stages[0]["steps"] = 150
stages[0]["losses"] = dict(gan=None)
stages[1]["steps"] = 2400
stages[1]["losses"]["gan"] = None
stages[1]["losses"]["semantic"]["weight"] = 0.01
stages[1]["schedule"] = [
    dict(type="LinearLR", start_factor=0.05, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=3e-5, begin=100, end=2400),
]
stages[2]["steps"] = 300
stages[2]["optimizer"] = dict(lr=1e-3)
stages[2]["schedule"] = [dict(type="CosineAnnealingLR", eta_min=1e-5, begin=0, end=300)]

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
    steps=800,
    global_batch_size=32,
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
    schedule=[
        dict(type="LinearLR", start_factor=0.01, begin=0, end=50),
        dict(type="CosineAnnealingLR", eta_min=1e-5, begin=50, end=800),
    ],
    ema=dict(sigma_rel=[0.10], decays=[], inference=0.10),
    sampling=dict(steps=30, cfg_scale=2.0),
    data=dict(nominal_images=1080),
    checkpoint=dict(every=200),
    log=dict(every=50, pictures=30),
)
