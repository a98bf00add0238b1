"""The tokenizer of the paper: f16, 32 channels, two-layer MLP adapter, LDM/VA-VAE convolutional decoder (App. A)."""

model = dict(
    adapter=dict(type="mlp"),  # hidden width 2 d: fixed by the paper's cost table
    decoder=dict(
        type="ldm_cnn", ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attn_resolutions=(16,), resolution=256
    ),
    latent_dim=32,
    downsample_factor=16,
)
discriminator = dict(type="patchgan", group_images=8)  # a GPU's, in the published code
