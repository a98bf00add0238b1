"""What the tokenizers of the small comparison share: 32-pixel images, f4d8, one decoder, losses, optimiser, averages.

Our own recipe. The 8 x 8 x 8 latents hold a sixth of an image's numbers. No adversarial loss, for every tokenizer
alike: the budget is small.
"""

_base_ = ["./runtime.py"]

model = dict(
    adapter=dict(type="mlp"),
    decoder=dict(
        type="ldm_cnn",
        ch=32,
        ch_mult=(1, 1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=32,
        norm_groups=8,
    ),
    latent_dim=8,
    downsample_factor=4,
)
discriminator = None
losses = dict(
    l1=dict(type="l1", weight=1.0),
    st_lpips=dict(type="st_lpips", net="alex", weight=0.2),
)
optimizer = dict(type="Adam", lr=1e-3, betas=(0.9, 0.99))
ema = dict(sigma_rel=[0.05, 0.10], inference=0.05)
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
