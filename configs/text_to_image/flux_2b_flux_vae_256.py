"""The 2B generator on FLUX's own VAE, f8d16 in patches of 2, 256 pixels: the paper's baseline of its own tokenizer.

    torchrun --nnodes=4 --nproc_per_node=8 tools/train.py configs/text_to_image/flux_2b_flux_vae_256.py \
        --cfg-options data_root=/path/to/captioned/images

As flux_2b_aligntok_256 but for the latents, drawn from the posterior. Paper: 140 h on 32 H100 for its own (200K steps
of 2,048 images, 409.6 M images seen = 0.66 epochs of the 616 M images), this one's time not stated.
Expected (paper, COCO captions, after 100K of these 200K steps, as the text around Table 5 reads): gFID 35.78, KID
0.018, HPSv2 0.242, GenEval 0.476. configs/text_to_image/flux_2b_flux_vae_512.py goes on. Not yet run here.
"""

_base_ = ["flux_2b_aligntok_256.py"]

tokenizer = "black-forest-labs/FLUX.1-dev"
generator = dict(in_channels=16, patch_size=2)
data = dict(posterior="sample")  # convention: as latent diffusion on a VAE is trained
