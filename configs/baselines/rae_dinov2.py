"""A frozen DINOv2-B/14 with registers and a ViT decoder, ImageNet 256: RAE's manner, 768 channels, none compressed.

    torchrun --nproc_per_node=8 tools/train.py configs/baselines/rae_dinov2.py --cfg-options data_root=...

Our own recipe after RAE (Zheng et al. 2025, arXiv 2510.11690); what of RAE it leaves out is in docs/baselines.md.
40K steps of 512 images = 16 epochs, 20.5 M images seen.
Expected (paper): nothing, since it trains no such tokenizer; RAE itself reports rFID 0.57. Not yet run here.
"""

_base_ = ["../_base_/losses.py", "../_base_/imagenet_256.py", "../_base_/runtime.py"]

model = dict(
    encoder=dict(type="dinov2", size="base", registers=True),
    adapter=dict(type="identity"),
    decoder=dict(type="vit_cnn"),
    latent_dim=768,
    downsample_factor=16,
)
discriminator = dict(type="patchgan", group_images=8)
losses = dict(gan=dict(start_step=5_000))
global_batch_size = 512

stages = [dict(name="decoder", steps=40_000, trainable=["decoder"])]
