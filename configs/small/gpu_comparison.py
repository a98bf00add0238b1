"""The small comparison on one GPU, in about ten minutes: three tokenizers at 64 pixels, a generator on each.

    python tools/compare.py configs/small/gpu_comparison.py --cfg-options data_root=tiny_imagenet.zip

Tiny-ImageNet at 64 pixels, 50 classes; f16d64 latents, a twelfth of an image's numbers. Each tokenizer sees 249,600
images and each generator 600,064. The criterion is that of configs/small/comparison.py on one
network, against two tokenizers, with one seed.
Expected (measured by configs/small/gpu_comparison.py, not run yet): docs/small.md.
"""

tokenizers = dict(
    vanilla_vae="gpu_vanilla_vae.py",
    vavae="gpu_vavae.py",
    aligntok="gpu_aligntok.py",
)
generator = "gpu_generator.py"
criterion = dict(
    arm="aligntok",
    metrics=["unguided/FD-EfficientNetLite2-96px"],
    reconstruction=dict(
        against="vanilla_vae",
        metrics=["reconstructions/FD-EfficientNetLite2-96px"],
        times=1.5,
    ),
)
results = "../../docs/small/gpu"
seeds = [0]
image_size = 64
extractors = [dict(type="efficientnet_lite2", size=96)]
perceptual = [dict(type="st_lpips", net="vgg")]
reference_encoder = dict(type="efficientnet_lite0", stride=16)
precision = "auto"
probe = dict(epochs=5, standardize=True)
workers = 8
samples = dict(
    num_samples=2500,
    every=586,
    batch_size=500,
    variants=dict(
        guided=dict(cfg_scale=2.0),
        unguided=dict(cfg_scale=1.0),
        unconditional=dict(cfg_scale=0.0),
    ),
)
