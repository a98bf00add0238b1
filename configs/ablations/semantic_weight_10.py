"""AlignTok ablation: semantic preservation of weight 10 in stage 2 (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/semantic_weight_10.py --cfg-options data_root=...

Equation 5, where the weight stands, is lost in the text at hand: read as lambda_sem, which applies after the
gradient ratio.
Paper: 8 H100, no time stated; stages 1 and 2 (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen).
Expected (paper, Table 1): rFID 0.59, PSNR 22.63, LPIPS 0.189, linear probe 40.89 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 2.59, IS 243.5, precision 0.839, recall 0.562. Not yet run here at this size.
"""

_base_ = ["stages_1_and_2.py"]

stages = _base_.stages
stages[1]["losses"]["semantic"]["weight"] = 10.0
