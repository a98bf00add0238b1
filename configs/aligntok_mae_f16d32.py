"""AlignTok, MAE-L/16, f16d32, ImageNet 256 (paper, Tables 2 and 9): another encoder, stages 1 and 2.

    torchrun --nproc_per_node=8 tools/train.py configs/aligntok_mae_f16d32.py --cfg-options data_root=...

Paper: 8 H100, no time stated (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen; no stage 3).
Expected (paper): rFID 0.29, PSNR 26.12, LPIPS 0.113. Not yet run here at this size.
"""

_base_ = ["aligntok_dinov2_f16d32.py"]

model = dict(encoder=dict(_delete_=True, type="mae"))

stages = _base_.stages[:2]
