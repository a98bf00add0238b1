"""VA-VAE, CNN encoder from random weights held to a frozen DINOv2-L, f16d64, ImageNet 256 (paper, Table 3).

    torchrun --nproc_per_node=8 tools/train.py configs/baselines/vavae_f16d64.py --cfg-options data_root=...

Paper: the published checkpoint, of 50 epochs in batches of 256; hardware and time not stated. Here 250K steps of 256
images = 50 epochs, 64.0 M images seen.
Expected (paper): rFID 0.14, PSNR 29.13, LPIPS 0.062, linear probe 19.72 % (Tables 3 and 10). Not yet run here.
"""

_base_ = ["vavae_f16d32.py"]

model = dict(latent_dim=64)
losses = dict(vf=dict(latent_dim=64))
