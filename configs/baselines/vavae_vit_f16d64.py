"""VA-VAE with AlignTok's encoder and adapter from random weights, f16d64, ImageNet 256 (paper, Table 3).

    torchrun --nproc_per_node=8 tools/train.py configs/baselines/vavae_vit_f16d64.py --cfg-options data_root=...

Paper: learning rate 1e-4, 34 epochs, as many as AlignTok's; batch, hardware and time not stated. Here AlignTok's batch:
680K steps of 64 images = 34 epochs, 43.5 M images seen.
Expected (paper): rFID 0.18, PSNR 29.12, LPIPS 0.075, linear probe 43.53 % (Tables 3 and 10). Not yet run here.
"""

_base_ = ["vavae_vit_f16d32.py"]

model = dict(latent_dim=64, adapter=dict(hidden_dim=128))
losses = dict(vf=dict(latent_dim=64))

stages = _base_.stages
stages[0]["steps"] = 680_000
