"""AlignTok ablation: stage 1 only, the encoder as it was pretrained (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/stage_1_only.py --cfg-options data_root=...

Paper: 7 h on 8 H100 (120K steps of 64 images = 6 epochs, 7.7 M images seen).
Expected (paper, Table 1): rFID 1.63, PSNR 17.34, LPIPS 0.323, linear probe 41.53 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 3.00, IS 246.4, precision 0.843, recall 0.529. Not yet run here at this size.
"""

_base_ = ["../aligntok_dinov2_f16d32.py"]

stages = _base_.stages[:1]
