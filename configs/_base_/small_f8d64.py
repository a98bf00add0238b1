"""What the tokenizers of the small comparison share: 32-pixel images, f8d64, one encoder, decoder, losses, optimiser.

Our own recipe. The 4 x 4 x 64 latents hold a third of an image's numbers. No adversarial loss, for every tokenizer
alike: the budget is small. The encoder is EfficientNet-Lite0 up to stride 16, of images enlarged twice; what differs is
its weights and what holds its latents. Linear paths beside encoder and decoder are ours, not the paper's.
"""

_base_ = ["./runtime.py"]

model = dict(
    encoder=dict(type="efficientnet_lite0", stride=16, linear_path=True),
    adapter=dict(type="linear"),
    decoder=dict(
        type="ldm_cnn",
        ch=16,
        ch_mult=(1, 2, 4, 8),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=32,
        norm_groups=4,
        linear_path=True,
    ),
    latent_dim=64,
    downsample_factor=8,
)
discriminator = None
losses = dict(
    l1=dict(type="l1", weight=1.0),
    st_lpips=dict(type="st_lpips", net="alex", weight=0.05),
)
optimizer = dict(type="Adam", lr=1e-3, betas=(0.9, 0.99))
ema = dict(sigma_rel=[0.05, 0.10], inference=0.05)
precision = "auto"
global_batch_size = 16
data = dict(
    train=dict(type="images", split="train", image_size=32),
    val=dict(type="images", split="val", image_size=32),
    nominal_images=25_000,
    workers=1,
)
validation = dict(num_images=500, batch_size=50, perceptual=dict(type="st_lpips", net="vgg"))
checkpoint = dict(every=500)
log = dict(every=50, pictures_every=None, pictures=12)
