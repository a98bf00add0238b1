"""Before the small comparison: do aligned latents mean more than a VAE's, and reconstruct nearly as well?

    python tools/compare.py configs/small/precheck.py --cfg-options data_root=tiny_imagenet.zip

Tiny-ImageNet at 32 pixels, 50 classes; each tokenizer sees 150,000 images, one seed, no generator. The criterion is to
be met before configs/small/comparison.py is worth its hours. Expected: docs/small.md.
"""

tokenizers = dict(
    aligntok="aligntok.py",
    vanilla_vae="vanilla_vae.py",
)
criterion = dict(
    arm="aligntok",
    at_least=[dict(metric="top1", against="vanilla_vae", times=2.0)],
    reconstruction=dict(metrics=["reconstructions/FD-EfficientNetLite2-96px"], at_most=60),
)
results = "../../docs/small/precheck"
seeds = [0]
image_size = 32
extractors = [dict(type="efficientnet_lite2", size=96)]
perceptual = [dict(type="st_lpips", net="vgg")]
reference_encoder = dict(type="efficientnet_lite0", stride=16, downsample_factor=8)
num_reference = 5000
probe = dict(epochs=5, num_train=10_000)
workers = 1
samples = dict(num_samples=2500, batch_size=50)
