"""AlignTok ablation: stages 1 and 2, no decoder refinement (paper, Table 1). The other ablations begin here.

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/stages_1_and_2.py --cfg-options data_root=...

Paper: 31 h on 8 H100 (7 + 24; 120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen).
Expected (paper, Table 1): rFID 0.36, PSNR 25.62, LPIPS 0.121, linear probe 35.09 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 2.19, IS 248.6, precision 0.811, recall 0.591. Not yet run here at this size.
"""

_base_ = ["../aligntok_dinov2_f16d32.py"]

stages = _base_.stages[:2]
