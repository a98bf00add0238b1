"""What the text-to-image generators share: data at varying aspect ratios, text encoders, optimiser, flow, sampler.

Paper (App. A): "2B", FLUX's implementation, patch 1, learning rate 1e-4 "with weight decay", varying aspect ratios,
sampling from averaged weights by DDIM in 50 steps with EP-CFG of scale 5.
Convention: where the paper is silent, minFM's recipe, the only published one of its group: logit-normal times shifted
by the number of tokens, squared error alone, AdamW with betas (0.9, 0.95), gradients clipped at 1 and steps above 2
left out after the first 1,000, warm-up, an average of 0.999, captions dropped one time in ten; FLUX's text encoders.
Ours: weight decay 0.01, a constant learning rate after the warm-up, a second average, images not mirrored (a caption
says left and right), shapes of equal area with sides up to twice each other, when things are written.
From an index of shards with captions, wherever they lie (docs/streaming.md):
``--cfg-options data.train.type=stream data.train.index=/path/to/index data.train.where=laion``.
"""

_base_ = ["./runtime.py"]

generator = dict(
    type="flux_dit",
    text=dict(
        tokens=dict(type="t5", path="google/t5-v1_1-xxl", precision="bf16"),
        pooled=dict(type="clip_text", path="openai/clip-vit-large-patch14"),
        dropout=0.1,
    ),
)
optimizer = dict(type="AdamW", lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01)
schedule = [dict(type="LinearLR", start_factor=1e-3, begin=0, end=2000)]
clip_grad_norm = 1.0
skip_norm = 2.0
skip_after = 1000
ema = dict(sigma_rel=[], decays=[0.999, 0.9999], inference=0.999)
precision = "bf16"
parallel = "shard"
transport = dict(times="logit_normal", mean=0.0, scale=1.0, shift="length", direction_weight=0.0)
sampling = dict(sampler="ddim", steps=50, shift="length", cfg_scale=5.0, preserve_energy=True)
data = dict(
    train=dict(type="images", image_size=dict(side=256), hflip=False),
    nominal_images=616_000_000,
    workers=8,
)
log = dict(
    pictures=8,
    prompts=[
        "a red apple on a wooden table",
        "a green apple on a wooden table",
        "two cats asleep on a blue sofa",
        "a lighthouse on a cliff at sunset, oil painting",
        "an old man reading a newspaper in a cafe",
        "a bicycle leaning on a yellow wall",
        "a bowl of soup with noodles and an egg",
        "a sign that says open",
    ],
)
