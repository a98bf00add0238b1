"""The small comparison: six tokenizers at one budget of images and with one decoder, a small transformer on each.

    python tools/compare.py configs/small/comparison.py --cfg-options data_root=tiny_imagenet.zip

Tiny-ImageNet at 32 pixels, 50 classes. Each tokenizer sees 25,600 images and each generator 38,400. Distances are
measured on EfficientNet-Lite2 (semantic) and on ST-LPIPS's VGG-16 (textures): the encoder that is aligned is Lite0.
Expected: docs/small.md.
"""

tokenizers = dict(
    vanilla_vae="vanilla_vae.py",
    vavae="vavae.py",
    aligntok="aligntok.py",
    random_encoder="aligntok_random_encoder.py",
    stage_1_only="aligntok_stage_1_only.py",
    semantic_weight_0="aligntok_semantic_weight_0.py",
)
generator = "generator.py"
seeds = [0, 1]
image_size = 32
extractors = [dict(type="efficientnet_lite2", size=96), dict(type="st_lpips", net="vgg")]
perceptual = [dict(type="st_lpips", net="vgg")]
reference_encoder = dict(type="efficientnet_lite0", stride=8)
num_val = 400
num_reference = 5000
probe = dict(epochs=5, num_train=10_000)
workers = 1
samples = dict(
    num_samples=400,
    every=400,
    batch_size=50,
    variants=dict(guided=dict(cfg_scale=2.0), unguided={}),
)
