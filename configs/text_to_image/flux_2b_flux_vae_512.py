"""The 2B generator on FLUX's own VAE goes on at 512 pixels: weights, averages and optimiser.

    torchrun --nnodes=4 --nproc_per_node=8 tools/train.py configs/text_to_image/flux_2b_flux_vae_512.py \
        --cfg-options data_root=/path/to/captioned/images

Paper: 135 h on 32 H100 for its own (90K steps of 512 images, 46.1 M images seen = 0.07 epochs of the 616 M images),
this one's time not stated.
Expected (paper): no number at 512 pixels. Not yet run here.
"""

_base_ = ["flux_2b_flux_vae_256.py"]

init_from = dict(folder="work_dirs/flux_2b_flux_vae_256", take=["weights", "averages", "optimizer"])
data = dict(train=dict(image_size=dict(side=512)))
steps = 90_000
global_batch_size = 512
