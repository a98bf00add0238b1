"""AlignTok, DINOv2-L/14, f16d64, the reconstruction variant "Ours*" (paper, App. C.2): looser in stage 2.

    torchrun --nproc_per_node=8 tools/train.py configs/aligntok_dinov2_f16d64_reconstruction.py \
        --cfg-options data_root=...

Paper: 6 + 11 + 10 epochs = 120K + 220K + 200K steps of 64 images, 34.6 M images seen; hardware and time not stated.
Expected (paper): rFID 0.14, PSNR 28.91, LPIPS 0.070, linear probe 45.22 %. Not yet run here at this size.
"""

_base_ = ["aligntok_dinov2_f16d32.py"]

model = dict(latent_dim=64)

stages = _base_.stages
stages[1]["losses"]["semantic"]["weight"] = 0.5
stages[1]["optimizer"] = dict(lr=1e-4)
stages[1]["discriminator_optimizer"] = dict(lr=1e-4)
stages[2]["steps"] = 200_000
