"""Small AlignTok, EfficientNet-Lite0, f8d16, Tiny-ImageNet at 64 pixels: three stages in about an hour on two cores.

    python tools/train.py configs/demo/tiny_imagenet_f8d16.py --cfg-options data_root=tiny_imagenet.zip

The archive (or folder) holds train/ and val/ of class folders. Needs the packages aligntok-efficientnet-lite (a real
ImageNet encoder) and aligntok-st-lpips (a perceptual loss), both under plugins/. Our own recipe, not the paper's:
3,800 steps of 8 images = 30,400 images seen, 1.2 epochs of the 25,000 photographs of 50 classes.
Expected (measured by that command, 500 held-out images): PSNR 16.3 dB after stage 1, 17.6 after stage 2, 17.7 after
stage 3; ST-LPIPS 0.489, 0.290, 0.270.
"""

_base_ = ["../_base_/runtime.py"]

model = dict(
    encoder=dict(type="efficientnet_lite0", stride=16),
    adapter=dict(type="mlp", hidden_dim=64),
    decoder=dict(
        type="ldm_cnn",
        ch=16,
        ch_mult=(1, 2, 4, 8),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=64,
        norm_groups=4,
    ),
    latent_dim=16,
    downsample_factor=8,
)
discriminator = dict(type="patchgan", base_channels=32, norm="group")
losses = dict(
    l1=dict(type="l1", weight=1.0),
    st_lpips=dict(type="st_lpips", net="alex", weight=0.2),
    gan=dict(type="gan", kind="hinge", weight=0.1, adaptive_weight=dict(at="decoder")),
)
optimizer = dict(type="Adam", lr=1e-3, betas=(0.9, 0.99))
discriminator_optimizer = dict(type="Adam", lr=2e-4, betas=(0.5, 0.9))
ema = dict(sigma_rel=[0.05, 0.10], inference=0.05)
global_batch_size = 8
data = dict(
    train=dict(type="images", split="train", image_size=64),
    val=dict(type="images", split="val", image_size=64),
    nominal_images=25_000,
    workers=1,
)
validation = dict(num_images=500, batch_size=50, perceptual=dict(type="st_lpips", net="vgg"))
checkpoint = dict(every=500)
log = dict(every=50, pictures_every=1000, pictures=12)

stages = [
    dict(
        name="latent_alignment",
        steps=1000,
        trainable=["adapter", "decoder"],
        losses=dict(gan=dict(start_step=750)),
    ),
    dict(
        name="perceptual_alignment",
        steps=2000,
        init_from=dict(stage="latent_alignment", weights="raw"),
        trainable=["encoder", "adapter", "decoder"],
        teacher="start",
        losses=dict(semantic=dict(type="semantic_preservation", weight=0.5, adaptive_weight=dict(at="encoder"))),
    ),
    dict(
        name="decoder_refinement",
        steps=800,
        init_from=dict(stage="perceptual_alignment", weights="ema"),
        trainable=["decoder"],
    ),
]
