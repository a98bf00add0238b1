"""Vanilla VAE, CNN encoder from random weights, f16d64, ImageNet 256: no pretrained encoder anywhere (paper, Table 3).

    torchrun --nproc_per_node=8 tools/train.py configs/baselines/vanilla_vae_f16d64.py --cfg-options data_root=...

Paper: the published checkpoint, of 50 epochs in batches of 256; hardware and time not stated. Here 250K steps of 256
images = 50 epochs, 64.0 M images seen.
Expected (paper): rFID 0.17, PSNR 29.38, LPIPS 0.061, linear probe 5.09 % (Tables 3 and 10). Not yet run here.
"""

_base_ = ["vanilla_vae_f16d32.py"]

model = dict(latent_dim=64)
