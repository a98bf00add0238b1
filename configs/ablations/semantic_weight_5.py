"""AlignTok ablation: semantic preservation of weight 5 in stage 2 (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/semantic_weight_5.py --cfg-options data_root=...

Equation 5, where the weight stands, is lost in the text at hand: read as lambda_sem, which applies after the
gradient ratio.
Paper: 8 H100, no time stated; stages 1 and 2 (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen).
Expected (paper, Table 1): rFID 0.49, PSNR 23.70, LPIPS 0.163, linear probe 40.55 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 2.48, IS 244.4, precision 0.836, recall 0.566. Not yet run here at this size.
"""

_base_ = ["stages_1_and_2.py"]

stages = _base_.stages
stages[1]["losses"]["semantic"]["weight"] = 5.0
