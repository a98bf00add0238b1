"""AlignTok ablation: semantic preservation of weight 0 in stage 2 (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/semantic_weight_0.py --cfg-options data_root=...

Equation 5, where the weight stands, is lost in the text at hand: read as lambda_sem, which applies after the
gradient ratio. The distance is still measured and logged.
Paper: 8 H100, no time stated; stages 1 and 2 (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen).
Expected (paper, Table 1): rFID 0.33, PSNR 26.29, LPIPS 0.110, linear probe 9.50 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 3.05, IS 215.1, precision 0.832, recall 0.550. Not yet run here at this size.
"""

_base_ = ["stages_1_and_2.py"]

stages = _base_.stages
stages[1]["losses"]["semantic"]["weight"] = 0.0
