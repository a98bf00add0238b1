"""VA-VAE, CNN encoder from random weights held to a frozen DINOv2-L, f16d32, ImageNet 256 (Yao et al. 2025): in one go.

    torchrun --nproc_per_node=8 tools/train.py configs/baselines/vavae_f16d32.py --cfg-options data_root=...

The schedule of the paper's other VAEs; the f16d32 model that the paper compares with is vavae_f16d32_three_part.py.
Paper: 50 epochs in batches of 256 for all but that one, hardware and time not stated. Here 250K steps of 256 images =
50 epochs, 64.0 M images seen.
Expected (paper): nothing for f16d32 after 50 epochs; after 125, rFID 0.28, PSNR 26.31, LPIPS 0.104, linear probe
22.96 % (Tables 3 and 10). Not yet run here.
"""

_base_ = ["../_base_/vavae_alignment.py"]

model = dict(encoder=dict(type="ldm_cnn"), adapter=dict(type="identity"))
ema = None  # convention: the published code keeps no average

stages = [dict(name="autoencoder", steps=250_000)]
