"""Vanilla VAE, CNN encoder from random weights, f16d32, ImageNet 256: no pretrained encoder anywhere (paper, Table 3).

    torchrun --nproc_per_node=8 tools/train.py configs/baselines/vanilla_vae_f16d32.py --cfg-options data_root=...

Paper: the published checkpoint, of 50 epochs in batches of 256; 800 A100 hours (Table 6), hardware and time not stated
otherwise. Here 250K steps of 256 images = 50 epochs, 64.0 M images seen.
Expected (paper): rFID 0.26, PSNR 27.14, LPIPS 0.097, linear probe 6.04 % (Tables 3 and 10). Not yet run here.
"""

_base_ = ["../_base_/vavae_f16.py"]

model = dict(encoder=dict(type="ldm_cnn"), adapter=dict(type="identity"))
ema = None  # convention: the published code keeps no average

stages = [dict(name="autoencoder", steps=250_000)]
