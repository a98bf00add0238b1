"""AlignTok ablation: stage 2 without weight averages, its last weights are the result (paper, Table 1).

    torchrun --nproc_per_node=8 tools/train.py configs/ablations/without_ema.py --cfg-options data_root=...

Stage 1 keeps its averages: stage 2 begins from the weights themselves, so nothing that follows depends on them.
Paper: 8 H100, no time stated; stages 1 and 2 (120K + 220K steps of 64 images = 6 + 11 epochs, 21.8 M images seen).
Expected (paper, Table 1): rFID 0.33, PSNR 25.70, LPIPS 0.122, linear probe 35.04 %; of a generator of 64 epochs,
30 sampling steps, guided: gFID 2.24, IS 246.0, precision 0.809, recall 0.587. Not yet run here at this size.
"""

_base_ = ["stages_1_and_2.py"]

stages = _base_.stages
stages[1]["ema"] = None
