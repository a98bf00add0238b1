"""AlignTok, DINOv2-L/14, f16d64, ImageNet 256 (paper, Tables 3 and 10): twice the channels, longer stages 2 and 3.

    torchrun --nproc_per_node=8 tools/train.py configs/aligntok_dinov2_f16d64.py --cfg-options data_root=...

Paper: 8 H100, no time stated (120K + 340K + 220K steps of 64 images = 6 + 17 + 11 epochs, 43.5 M images seen).
Expected (paper): rFID 0.17, PSNR 27.41, LPIPS 0.089, linear probe 46.99 %. Not yet run here at this size.
"""

_base_ = ["aligntok_dinov2_f16d32.py"]

model = dict(latent_dim=64)

stages = _base_.stages
stages[1]["steps"] = 340_000
stages[2]["steps"] = 220_000
