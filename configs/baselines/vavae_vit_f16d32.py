"""VA-VAE with AlignTok's encoder and adapter from random weights, f16d32, ImageNet 256 (paper, Table 3).

    torchrun --nproc_per_node=8 tools/train.py configs/baselines/vavae_vit_f16d32.py --cfg-options data_root=...

What pretraining itself gives: the same network as AlignTok's and as many epochs, but DINOv2 only as the teacher.
Paper: learning rate 1e-4, 22 epochs, as many as AlignTok's; batch, hardware and time not stated. Here AlignTok's batch:
440K steps of 64 images = 22 epochs, 28.2 M images seen.
Expected (paper): rFID 0.37, PSNR 25.66, LPIPS 0.130, linear probe 33.57 % (Tables 3 and 10). Not yet run here.
"""

_base_ = ["../_base_/vavae_alignment.py"]

model = dict(
    encoder=dict(type="dinov2", pretrained=False),
    adapter=dict(type="mlp", hidden_dim=64),  # as wide as AlignTok's; its output is mean and log-variance
)
global_batch_size = 64
ema = dict(sigma_rel=[0.05, 0.10], inference=0.05)  # ours: as AlignTok's, that the two differ in nothing else

stages = [dict(name="autoencoder", steps=440_000)]
